"""How good are the masks of preset `lesson`? Beside the published loop's, and beside other ways to search.

    python benchmarks/convergence.py [--tasks action object] [--clips 24] [--ratios .05 .1]
    python benchmarks/convergence.py --against released paper                # also search as published
    python benchmarks/convergence.py --try "reward=log" "cooling=1" ...   # one constant changed

For each clip that a narrow network gets right, and each ratio by itself: the probability kept (`hard`: by the
mask's largest values, as many as its sum), the IoU of the mask with the true one (grown by 4 px), spatial
pointing, flicker (median over clips), leakage (probability of the class when the mask is laid over the next
clip of another class), mean of the mask over its ratio, passes of the network. Reports means, the worst
probability, and differences to `lesson` paired by clip with 95 % bootstrap intervals. Rows go to
benchmarks/convergence.csv as they come; what is there is not measured again: delete it after a change. Writes
benchmarks/convergence.md.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from steplab.explain import Explanation, explain
from steplab.metrics import compare, flicker, leakage, mask_iou, pointing_game
from steplab.networks import Network, load_network
from steplab.perturb import perturb
from steplab.stage import Record, Stage
from steplab.training import grow

TABLE = Path(__file__).with_suffix(".csv")
FAMILIES = ("r2plus1d", "vgg16lstm")
TITLES = {"lesson": "STEP", "released": "STEP, published loop", "paper": "STEP, paper's energy"}
KEYS = ("probability", "hard", "IoU", "S-PT", "flicker", "leakage", "mean / ratio", "passes")


def marks(result: Explanation, record: Record, ratio: float, network: Network, other: Record) -> dict:
    mask, label = result.masks[0], record.label
    least = mask.flatten().sort(descending=True).values[max(round(float(mask.sum())), 1) - 1]
    with torch.no_grad():
        hard = network.probabilities(perturb(record.clip.pixels[None], (mask >= least).float()[None]))
    return {
        "probability": float(result.probability[0]),
        "hard": float(hard[0, label]),
        "IoU": mask_iou(mask, grow(record.mask.float(), 4) > 0),
        "S-PT": pointing_game(result.heatmap, record.boxes),
        "flicker": flicker(mask),
        "leakage": float(leakage(network, mask, [other.clip.pixels], label)[0]),
        "mean / ratio": float(mask.mean()) / ratio,
        "passes": int(np.isfinite(result.history["energy"]).sum()),
    }


def recognised(network: Network, count: int, task: str = "action") -> list[Record]:
    """The first clips of `Stage(task, split="test", seed=1)` that the network gets right."""
    stage, found, index = Stage(task, split="test", seed=1), [], 0
    while len(found) < count:
        record = stage[index]
        index += 1
        if int(network.probabilities(record.clip.pixels[None])[0].argmax()) == record.label:
            found.append(record)
    return found


def parse(text: str) -> dict:
    """ "shrink=40,reward=log" as keyword arguments."""
    found = {}
    for key, value in (part.split("=") for part in text.split(",")):
        number = value.lstrip("-").replace(".", "", 1).isdigit()
        found[key] = value if not number else float(value) if "." in value else int(value)
    return found


def known() -> pd.DataFrame:
    if not TABLE.exists():
        return pd.DataFrame(columns=["task", "family", "clip", "setting", "method", "ratio", *KEYS])
    return pd.read_csv(TABLE)


def measure(family: str, chosen: argparse.Namespace) -> None:
    """Append a row for each clip, setting and ratio that benchmarks/convergence.csv does not hold yet."""
    torch.set_num_threads(chosen.threads)
    settings: dict[str, tuple[str, dict]] = {name: (name, {}) for name in ("lesson", *chosen.against)}
    settings |= {t: ("lesson", parse(t)) for t in chosen.trials}
    for task in chosen.tasks:
        network = load_network(f"stage-{task}-{family}")
        records = recognised(network, chosen.clips + 8, task)
        for ratio in chosen.ratios:
            for name, (preset, more) in settings.items():
                rows = known().query("task == @task and family == @family and ratio == @ratio")
                rows = rows[(rows.setting == name) & (rows.method == chosen.method)]
                for i, record in enumerate(records[: chosen.clips]):
                    if record.name in set(rows["clip"]):
                        continue
                    other = next(r for r in records[i + 1 :] if r.label != record.label)
                    about = {"task": task, "family": family, "clip": record.name, "setting": name}
                    found = explain(
                        network, record.clip, record.label, chosen.method, (ratio,), preset,
                        progress=False, **more,
                    )  # fmt: skip
                    row = about | {"method": chosen.method, "ratio": ratio}
                    line = pd.DataFrame([row | marks(found, record, ratio, network, other)]).round(4)
                    line.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
                    print(line.to_string(header=False, index=False), flush=True)


def section(title: str, rows: pd.DataFrame) -> list[str]:
    """Means of all settings and, paired by clip, how far each lies from `lesson`."""
    tables = {str(name): part.set_index("clip")[[*KEYS]] for name, part in rows.groupby("setting")}
    lines = ["", f"## {title}", ""]
    lines += ["| | clips | worst p | " + " | ".join(KEYS) + " |", "|---" * (len(KEYS) + 3) + "|"]
    for name, table in tables.items():
        middles = {k: table[k].median() if k == "flicker" else table[k].mean() for k in KEYS}
        means = " | ".join("" if np.isnan(m) else f"{m:.3f}" for m in middles.values())
        lines.append(f"| {TITLES.get(name, name)} | {len(table)} | {table.probability.min():.2f} | {means} |")
    for name, theirs in tables.items():
        if name == "lesson" or "lesson" not in tables:
            continue
        clips = tables["lesson"].index.intersection(theirs.index)
        pairs = [(tables["lesson"].loc[clips, k], theirs.loc[clips, k]) for k in KEYS]
        cells = ["" if (a - b).isna().all() else str(compare(a, b)) for a, b in pairs]
        lines.append(f"| STEP − {TITLES.get(name, name)} | {len(clips)} | | " + " | ".join(cells) + " |")
    return lines


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--clips", type=int, default=24)
    options.add_argument("--method", default="step")
    options.add_argument("--tasks", nargs="+", default=["action", "object"])
    options.add_argument("--families", nargs="*", default=FAMILIES, help="none: only write the report anew")
    options.add_argument("--ratios", nargs="+", type=float, default=[0.05, 0.1])
    options.add_argument("--against", nargs="*", choices=("released", "paper"), default=[])
    options.add_argument("--threads", type=int, default=1, help="of each family's process")
    options.add_argument("--try", nargs="*", default=[], dest="trials", help="overrides of lesson")
    chosen = options.parse_args()
    with ProcessPoolExecutor(max(len(chosen.families), 1), multiprocessing.get_context("spawn")) as executor:
        for task in [executor.submit(measure, family, chosen) for family in chosen.families]:
            task.result()
    lines = [
        "# Masks of preset `lesson`",
        "",
        'Clips of `Stage(task, "test", seed=1)` that the network gets right, one mask at a time. What the',
        "columns are, `convergence.py` says. STEP: preset `lesson`. Published loop and paper's energy:",
        "presets `released` and `paper`, 2000 iterations; their ratio counts a padded mask or is a price",
        "among others, so that theirs come out larger than asked. Other rows: `lesson`, constants changed.",
        "Differences are paired by clip, with 95 % bootstrap intervals. Rows in `convergence.csv`.",
    ]
    for (task, family, method, ratio), rows in known().groupby(["task", "family", "method", "ratio"]):
        lines += section(f"{method}, stage-{task}-{family}, ratio {ratio:g}", rows)
    text = "\n".join(lines) + "\n"
    print(text)
    TABLE.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
