"""Is `lesson` as good as `paper`? Both on the same clips of the stage, with both narrow networks.

    python benchmarks/convergence.py [--clips 24] [--task action] [--ratios .1]
    python benchmarks/convergence.py --try "shrink=40" "learning_rate=.15,momentum=.6"    # other schedules

For each clip that the network gets right: the probability kept, the IoU of the mask with the true one
(grown by 4 px), spatial pointing, iterations. Masks of `paper` come out larger than asked, so `lesson` also
searches with what they came to for a ratio (setting "lesson, as large"). Reports means and the paired
difference lesson - paper with a 95 % bootstrap interval over clips. Rows go to benchmarks/convergence.csv
as they come; what is there is not measured again: delete it after a change, and before another method or
ratio. Writes benchmarks/convergence.md from all rows.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from steplab.explain import Explanation, explain
from steplab.metrics import compare, mask_iou, pointing_game
from steplab.networks import load_network
from steplab.stage import Stage
from steplab.training import grow

AS_LARGE = "lesson, as large"
TABLE = Path(__file__).with_suffix(".csv")
FAMILIES = ("r2plus1d", "vgg16lstm")


def marks(result: Explanation, record, ratios) -> dict[str, float]:
    true = grow(record.mask.float(), 4) > 0
    return {
        "probability": float(result.probability.mean()),
        "IoU": float(np.mean([mask_iou(mask, true) for mask in result.masks])),
        "S-PT": pointing_game(result.heatmap, record.boxes),
        "iterations": float(np.isfinite(result.history["energy"]).sum(1).mean()),
        "mean / ratio": float((result.masks.mean(dim=(1, 2, 3)) / torch.tensor(ratios)).mean()),
    }


def parse(text: str) -> dict:
    """ "shrink=40,reward=log" as keyword arguments."""
    found = {}
    for key, value in (part.split("=") for part in text.split(",")):
        number = value.lstrip("-").replace(".", "", 1).isdigit()
        found[key] = value if not number else float(value) if "." in value else int(value)
    return found


def measure(family: str, chosen: argparse.Namespace) -> None:
    """Append a row for each clip and setting that benchmarks/convergence.csv does not hold yet."""
    torch.set_num_threads(chosen.threads)
    settings = {"paper": ("paper", {"iterations": chosen.paper_iterations}), "lesson": ("lesson", {})}
    settings |= {AS_LARGE: ("lesson", {})}
    settings |= {f"lesson {t}": ("lesson", parse(t)) for t in chosen.trials}
    network = load_network(f"stage-{chosen.task}-{family}")
    stage = Stage(chosen.task, split="test", seed=1)
    done = set()
    if TABLE.exists():
        known = pd.read_csv(TABLE)
        done = set(known[["family", "clip", "setting"]].itertuples(index=False, name=None))
    records, index = [], 0
    while len(records) < chosen.clips:
        record = stage[index]
        index += 1
        if int(network.probabilities(record.clip.pixels[None])[0].argmax()) == record.label:
            records.append(record)
    for name, (preset, more) in settings.items():
        size = {}
        if name == AS_LARGE:  # what the masks of `paper` came to
            theirs = pd.read_csv(TABLE).query("family == @family and setting == 'paper'")
            size = dict(zip(theirs["clip"], theirs["mean / ratio"], strict=True))
        left = [r for r in records if (family, r.name, name) not in done]
        batch = 1 if name == AS_LARGE else chosen.batch
        for group in (left[i : i + batch] for i in range(0, len(left), batch)):
            clips, labels, ratios = [r.clip for r in group], [r.label for r in group], chosen.ratios
            if name == AS_LARGE:
                ratios = [min(v * size[group[0].name], 0.99) for v in ratios]
            found = explain(
                network, clips, labels, chosen.method, ratios, preset,
                progress=False, max_batch=chosen.batch, **more,
            )  # fmt: skip
            assert isinstance(found, list)
            rows = [
                {"family": family, "clip": r.name, "setting": name, **marks(result, r, chosen.ratios)}
                for r, result in zip(group, found, strict=True)
            ]
            lines = pd.DataFrame(rows).round(4)
            lines.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
            print(lines.to_string(header=False, index=False), flush=True)


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--clips", type=int, default=24)
    options.add_argument("--task", default="action")
    options.add_argument("--method", default="step")
    options.add_argument("--families", nargs="*", default=FAMILIES, help="none: only write the report anew")
    options.add_argument("--ratios", nargs="+", type=float, default=[0.1])
    options.add_argument("--paper-iterations", type=int, default=2000)
    options.add_argument("--threads", type=int, default=1, help="of each family's process")
    options.add_argument("--batch", type=int, default=4, help="masks at a time")
    options.add_argument(
        "--try", nargs="*", default=[], dest="trials", help="overrides of lesson, side by side"
    )
    chosen = options.parse_args()
    with ProcessPoolExecutor(max(len(chosen.families), 1), multiprocessing.get_context("spawn")) as executor:
        for task in [executor.submit(measure, family, chosen) for family in chosen.families]:
            task.result()
    lines, rows = [], pd.read_csv(TABLE)
    for family, mine in rows.groupby("family"):
        whole = mine.groupby("clip").setting.nunique() == mine.setting.nunique()
        mine = mine[mine["clip"].map(whole)]  # clips that every setting has seen
        table = {str(name): part.set_index("clip").iloc[:, 2:] for name, part in mine.groupby("setting")}
        keys = list(table["paper"])
        lines += ["", f"## stage-{chosen.task}-{family}, {len(table['lesson'])} clips", ""]
        lines += ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
        for name, part in table.items():
            lines.append(f"| {name} | " + " | ".join(f"{part[k].mean():.3f}" for k in keys) + " |")
        for name, part in table.items():
            if name != "paper":
                cells = [str(compare(part[k], table["paper"][k].loc[part.index])) for k in keys]
                lines.append(f"| {name} - paper | " + " | ".join(cells) + " |")
    head = f"""# Masks of `lesson` beside those of `paper`

Method {chosen.method}, ratios {chosen.ratios}, clips of `Stage("{chosen.task}", "test", seed=1)` that the
network gets right; `paper` with {chosen.paper_iterations} iterations. IoU: of the mask above .5 with the true
mask grown by 4 px, mean over ratios. S-PT of the heat map. "{AS_LARGE}": asked for what the mask of `paper`
came to on the same clip, for that one is larger than its ratio. Differences are paired by clip, with 95 %
bootstrap intervals. By `benchmarks/convergence.py`; a row for each clip in `convergence.csv`.
"""
    text = head + "\n".join(lines) + "\n"
    print(text)
    TABLE.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
