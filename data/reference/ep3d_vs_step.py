"""EP-3D beside STEP on clips of the stage: the results that lesson 03 reads.

    python data/reference/ep3d_vs_step.py [--tasks action] [--families vgg16lstm r2plus1d] [--clips 12]

For each clip that the network gets right and each setting: the probability kept, the IoU of the mask with
the true one (grown by 4 px), spatial pointing, flicker, the mask's mean, and the share kept in each frame.
Rows go to ep3d_vs_step.csv beside this file as they come; what is there is not measured again.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from steplab.explain import Explanation, explain
from steplab.metrics import flicker, mask_iou, pointing_game
from steplab.networks import Network, load_network
from steplab.stage import Stage
from steplab.training import grow

TABLE = Path(__file__).with_suffix(".csv")
SETTINGS = {  # name: method, constants; the first three differ in nothing but L_K's padding in time
    "STEP": ("step", {}),
    "STEP, frames repeated": ("step-padded", {}),
    "STEP, no padding": ("step", {"core_padding": "none"}),
    "EP-3D": ("ep3d", {}),
}


def row(result: Explanation, record, network: Network, setting: str) -> dict:
    """What is measured of the first mask."""
    mask, task = result.masks[0], record.name.split("-")[0]
    numbers = {
        "probability": float(result.probability[0]),
        "IoU": mask_iou(mask, grow(record.mask.float(), 4) > 0),
        "S-PT": pointing_game(result.heatmap, record.boxes),
        "flicker": flicker(mask),
        "mean": float(mask.mean()),
    }
    numbers |= {f"frame {t}": float(share) for t, share in enumerate(mask.mean(dim=(1, 2)))}
    about = {"task": task, "network": network.name, "clip": record.name, "method": setting}
    asked = {"ratio": result.ratios[0], "preset": result.preset, "seed": result.seed}
    return about | {k: round(v, 4) for k, v in numbers.items()} | asked


def understood(network: Network, task: str, count: int, seed: int = 1) -> list:
    """The first `count` test clips that the network gets right."""
    stage, records, index = Stage(task, split="test", seed=seed), [], 0
    while len(records) < count:
        record = stage[index]
        index += 1
        with torch.no_grad():
            if int(network.probabilities(record.clip.pixels[None])[0].argmax()) == record.label:
                records.append(record)
    return records


def measure(network: Network, record, setting: str, ratio: float, preset: str) -> dict:
    """One mask, one row."""
    method, more = SETTINGS[setting]
    result = explain(
        network, record.clip, record.label, method, (ratio,), preset, progress=False, **more
    )  # fmt: skip
    assert isinstance(result, Explanation)
    return row(result, record, network, setting)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--tasks", nargs="+", default=["action"])
    options.add_argument("--families", nargs="+", default=["vgg16lstm", "r2plus1d"])
    options.add_argument("--clips", type=int, default=12)
    options.add_argument("--ratio", type=float, default=0.1)
    options.add_argument("--preset", default="lesson")
    chosen = options.parse_args()
    done = set()
    if TABLE.exists():
        known = pd.read_csv(TABLE)
        keys = ["network", "clip", "method", "ratio", "preset"]
        done = set(known[keys].itertuples(index=False, name=None))
    for task in chosen.tasks:
        for family in chosen.families:
            network = load_network(f"stage-{task}-{family}")
            for record in understood(network, task, chosen.clips):
                for setting in SETTINGS:
                    key = (network.name, record.name, setting, chosen.ratio, chosen.preset)
                    if key in done:
                        continue
                    line = pd.DataFrame([measure(network, record, setting, chosen.ratio, chosen.preset)])
                    line.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
                    print(line.iloc[:, 1:9].to_string(header=False, index=False), flush=True)


if __name__ == "__main__":
    main()
