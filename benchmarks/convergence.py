"""Are masks of `lesson` and `quick` as good as the published loop's? Same clips, both narrow networks.

    python benchmarks/convergence.py [--clips 24] [--ratios .1 .2] [--against released paper]
    python benchmarks/convergence.py --try "shrink=40" "learning_rate=.15,momentum=.6"    # other schedules

For each clip that the network gets right, and each ratio by itself: the probability kept, the IoU of the
mask with the true one (grown by 4 px), spatial pointing, iterations. The published loop (`released`, 2000
iterations) counts its ratio over a padded mask, and what it keeps of the frame comes out larger, so ours
also search with what that came to for a ratio (settings "as large as"). Reports means and paired
differences with 95 % bootstrap intervals over clips. Rows go to benchmarks/convergence.csv as they come;
what is there is not measured again: delete it after a change, and before another method. Writes
benchmarks/convergence.md from all rows.
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
from steplab.networks import Network, load_network
from steplab.stage import Record, Stage
from steplab.training import grow

TABLE = Path(__file__).with_suffix(".csv")
FAMILIES = ("r2plus1d", "vgg16lstm")
KEYS = ("probability", "IoU", "S-PT", "iterations", "mean / ratio")


def marks(result: Explanation, record, ratio: float) -> dict[str, float]:
    true = grow(record.mask.float(), 4) > 0
    return {
        "probability": float(result.probability[0]),
        "IoU": mask_iou(result.masks[0], true),
        "S-PT": pointing_game(result.heatmap, record.boxes),
        "iterations": int(np.isfinite(result.history["energy"]).sum()),
        "mean / ratio": float(result.masks.mean()) / ratio,
    }


def recognised(network: Network, count: int) -> list[Record]:
    """The first clips of `Stage("action", split="test", seed=1)` that the network gets right."""
    stage, found, index = Stage("action", split="test", seed=1), [], 0
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
        return pd.DataFrame(columns=["family", "clip", "setting", "ratio", *KEYS])
    return pd.read_csv(TABLE)


def measure(family: str, chosen: argparse.Namespace) -> None:
    """Append a row for each clip, setting and ratio that benchmarks/convergence.csv does not hold yet."""
    torch.set_num_threads(chosen.threads)
    network = load_network(f"stage-action-{family}")
    records = recognised(network, chosen.clips)
    settings: dict[str, tuple[str, dict]] = {name: (name, {}) for name in chosen.against}
    for preset in chosen.ours:
        settings |= {preset: (preset, {})}
        settings |= {f"{preset}, as large as {name}": (preset, {}) for name in chosen.against}
    settings |= {f"lesson {t}": ("lesson", parse(t)) for t in chosen.trials}
    for ratio in chosen.ratios:
        for name, (preset, more) in settings.items():
            rows = known().query("family == @family and ratio == @ratio")
            left = [r for r in records if r.name not in set(rows[rows.setting == name]["clip"])]
            model = name.partition(", as large as ")[2]
            theirs = rows[rows.setting == model].set_index("clip")["mean / ratio"] if model else None
            batch = 1 if model else chosen.batch
            for group in (left[i : i + batch] for i in range(0, len(left), batch)):
                asked = ratio
                if theirs is not None:
                    if group[0].name not in theirs:
                        continue
                    asked = min(ratio * float(theirs[group[0].name]), 0.99)
                clips, labels = [r.clip for r in group], [r.label for r in group]
                found = explain(
                    network, clips, labels, chosen.method, (asked,), preset,
                    progress=False, max_batch=chosen.batch, **more,
                )  # fmt: skip
                lines = pd.DataFrame(
                    {"family": family, "clip": r.name, "setting": name, "ratio": ratio, **marks(e, r, ratio)}
                    for e, r in zip(found, group, strict=True)
                ).round(4)
                lines.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
                print(lines.to_string(header=False, index=False), flush=True)


def section(family: str, ratio: float, rows: pd.DataFrame) -> list[str]:
    """Means of all settings and, paired by clip, how far each of ours lies from each published one."""
    tables = {str(name): part.set_index("clip")[[*KEYS]] for name, part in rows.groupby("setting")}
    lines = ["", f"## stage-action-{family}, ratio {ratio:g}", ""]
    lines += ["| | clips | " + " | ".join(KEYS) + " |", "|---" * (len(KEYS) + 2) + "|"]
    for name, table in tables.items():
        lines.append(
            f"| {name} | {len(table)} | " + " | ".join(f"{table[k].mean():.3f}" for k in KEYS) + " |"
        )
    for name in tables:
        for model in ("released", "paper"):
            ours = name not in ("released", "paper") and ("as large" not in name or name.endswith(model))
            if model not in tables or not ours:
                continue
            clips = tables[name].index.intersection(tables[model].index)
            if len(clips) > 1:
                mine, theirs = tables[name].loc[clips], tables[model].loc[clips]
                cells = [str(compare(mine[k], theirs[k])) for k in KEYS]
                lines.append(f"| {name} − {model} | {len(clips)} | " + " | ".join(cells) + " |")
    return lines


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--clips", type=int, default=24)
    options.add_argument("--method", default="step")
    options.add_argument("--families", nargs="*", default=FAMILIES, help="none: only write the report anew")
    options.add_argument("--ratios", nargs="+", type=float, default=[0.1, 0.2])
    options.add_argument("--against", nargs="*", choices=("released", "paper"), default=["released"])
    options.add_argument("--ours", nargs="*", default=["lesson", "quick"], help="presets")
    options.add_argument("--threads", type=int, default=1, help="of each family's process")
    options.add_argument("--batch", type=int, default=4, help="masks at a time")
    options.add_argument(
        "--try", nargs="*", default=[], dest="trials", help="overrides of lesson, side by side"
    )
    chosen = options.parse_args()
    with ProcessPoolExecutor(max(len(chosen.families), 1), multiprocessing.get_context("spawn")) as executor:
        for task in [executor.submit(measure, family, chosen) for family in chosen.families]:
            task.result()
    lines = [
        "# Masks of `lesson` and `quick` beside those of the published loop",
        "",
        f'Method {chosen.method}, clips of `Stage("action", "test", seed=1)` that the network gets right;',
        "`released` (the published demo's constants) and `paper` (the paper's energy) with 2000 iterations.",
        "IoU: of the mask above .5 with the true mask grown by 4 px. S-PT of the mask. As large: asked for",
        "what the other's mask of the same clip came to. Differences are paired by clip, with 95 % bootstrap",
        "intervals. By `benchmarks/convergence.py`; a row for each clip in `convergence.csv`.",
    ]
    for (family, ratio), rows in known().groupby(["family", "ratio"]):
        lines += section(family, ratio, rows)
    text = "\n".join(lines) + "\n"
    print(text)
    TABLE.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
