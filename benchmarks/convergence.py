"""Is `lesson` as good as `paper`? Both on the same clips of the stage, with both narrow networks.

    python benchmarks/convergence.py [--clips 24] [--task action] [--ratios .05 .1] [--minutes 60]
    python benchmarks/convergence.py --try "shrink=40" "learning_rate=.15,momentum=.6"    # other schedules

For each clip that the network gets right: the probability kept, the IoU of the mask with the true one
(grown by 4 px), spatial pointing, iterations. Reports means and the paired difference lesson - paper with a
95 % bootstrap interval over clips. Writes benchmarks/convergence.md.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steplab.explain import Explanation, explain
from steplab.networks import load_network
from steplab.stage import Stage

FAMILIES = ("r2plus1d", "vgg16lstm")
RADIUS = 7  # of the pointing disc, pixels


def grown(mask: Tensor, pixels: int = 4) -> Tensor:
    return F.max_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0


def pointing(heat: Tensor, boxes) -> float:
    """Share of the frames with a box whose maximum lies within RADIUS of one."""
    hits = []
    for frame, found in zip(heat, boxes, strict=True):
        if len(found):
            y, x = divmod(int(frame.argmax()), frame.shape[1])
            dx = (found[:, 0] - x).clamp(min=0) + (x - (found[:, 2] - 1)).clamp(min=0)
            dy = (found[:, 1] - y).clamp(min=0) + (y - (found[:, 3] - 1)).clamp(min=0)
            hits.append(float((dx**2 + dy**2 <= RADIUS**2).any()))
    return float(np.mean(hits)) if hits else float("nan")


def marks(result: Explanation, record) -> dict[str, float]:
    true = grown(record.mask)
    kept = result.masks > 0.5
    iou = [(m & true).sum() / (m | true).sum() for m in kept]
    return {
        "probability": float(result.probability.mean()),
        "IoU": float(torch.stack(iou).mean()),
        "S-PT": pointing(result.heatmap, record.boxes),
        "iterations": float(np.isfinite(result.history["energy"]).sum(1).mean()),
        "mean / ratio": float((result.masks.mean(dim=(1, 2, 3)) / torch.tensor(result.ratios)).mean()),
    }


def interval(differences: np.ndarray) -> str:
    numbers = np.random.default_rng(0)
    draws = numbers.choice(differences, (4000, len(differences))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{differences.mean():+.3f} ({low:+.3f} .. {high:+.3f})"


def parse(text: str) -> dict:
    """ "shrink=40,reward=log" as keyword arguments."""
    found = {}
    for key, value in (part.split("=") for part in text.split(",")):
        number = value.lstrip("-").replace(".", "", 1).isdigit()
        found[key] = value if not number else float(value) if "." in value else int(value)
    return found


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--clips", type=int, default=24)
    options.add_argument("--task", default="action")
    options.add_argument("--method", default="step")
    options.add_argument("--families", nargs="+", default=FAMILIES)
    options.add_argument("--ratios", nargs="+", type=float, default=[0.05, 0.1])
    options.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so many, with the clips done"
    )
    options.add_argument("--paper-iterations", type=int, default=2000)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument(
        "--try", nargs="*", default=[], dest="trials", help="overrides of lesson, side by side"
    )
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    settings = {"paper": ("paper", {"iterations": chosen.paper_iterations}), "lesson": ("lesson", {})}
    settings |= {f"lesson {t}": ("lesson", parse(t)) for t in chosen.trials}
    lines = []
    for family in chosen.families:
        network = load_network(f"stage-{chosen.task}-{family}")
        stage = Stage(chosen.task, split="test", seed=1)
        table: dict[str, list[dict]] = {name: [] for name in settings}
        index, start, limit = 0, time.perf_counter(), 60 * chosen.minutes
        while len(table["lesson"]) < chosen.clips and time.perf_counter() - start < limit:
            record = stage[index]
            index += 1
            if int(network.probabilities(record.clip.pixels[None])[0].argmax()) != record.label:
                continue
            for name, (preset, more) in settings.items():
                began = time.perf_counter()
                result = explain(
                    network,
                    record.clip,
                    record.label,
                    chosen.method,
                    chosen.ratios,
                    preset,
                    progress=False,
                    **more,
                )
                assert isinstance(result, Explanation)
                row = {**marks(result, record), "seconds": time.perf_counter() - began}
                table[name].append(row)
                print(family, record.name, name, {k: round(v, 3) for k, v in row.items()}, flush=True)
        lines += ["", f"## stage-{chosen.task}-{family}, {len(table['lesson'])} clips", ""]
        keys = list(table["lesson"][0])
        lines += ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
        values = {name: {k: np.array([r[k] for r in rows]) for k in keys} for name, rows in table.items()}
        for name, columns in values.items():
            lines.append(f"| {name} | " + " | ".join(f"{np.nanmean(columns[k]):.3f}" for k in keys) + " |")
        for name, columns in values.items():
            if name != "paper":
                differences = (columns[k] - values["paper"][k] for k in keys)
                cells = [interval(d[np.isfinite(d)]) if np.isfinite(d).any() else "-" for d in differences]
                lines.append(f"| {name} - paper | " + " | ".join(cells) + " |")
    head = f"""# Masks of `lesson` beside those of `paper`

Method {chosen.method}, ratios {chosen.ratios}, clips of `Stage("{chosen.task}", "test", seed=1)` that the
network gets right; `paper` with {chosen.paper_iterations} iterations. IoU: of the mask above .5 with the true
mask grown by 4 px, mean over ratios. S-PT of the heat map. Differences are paired by clip, with 95 %
bootstrap intervals. Seconds on a shared machine, {chosen.threads} threads. By `benchmarks/convergence.py`.
"""
    text = head + "\n".join(lines) + "\n"
    print(text)
    Path(__file__).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
