"""Null test: where does a method look when there is nothing to see?

    python benchmarks/null_test.py [--presets lesson released] [--networks 48 8] [--size 16 112 112]

Each clip is noise, each network a small random linear map of the pixels (`metrics.null_network`): no place
and no frame means anything, so the mean mask over many of them must be flat but for chance. How much is
chance? Move each mask by a random shift of its own, in time or in space, a thousand times: p is the share of
those draws that lie as far from flat as the masks themselves. Rows go to data/reference/null_test.csv as they
come, and what is there is not measured again; mean masks go to data/reference/null_test.safetensors (blocks
of 4 x 4 px); then benchmarks/null_test.md and .png are written from these.
"""

import argparse
import time
import zlib
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from steplab import figures
from steplab.config import METHODS
from steplab.explain import Explanation, explain
from steplab.faithfulness import chance_in_space, chance_in_time
from steplab.metrics import border_bias, frame_shares, null_network
from steplab.tables import REFERENCE

RATIO = 0.1
TABLE, MEANS = REFERENCE / "null_test.csv", REFERENCE / "null_test.safetensors"


def null_masks(method: str, preset: str, networks: int, size: tuple[int, int, int], **more) -> Tensor:
    """Masks (networks, T, H, W), each of a network, a clip of noise and a seed of its own."""
    found = []
    for i in range(networks):  # one seed for all would be one habit
        numbers = torch.Generator().manual_seed(zlib.crc32(f"{method} {preset} {i}".encode()))
        clip = torch.rand(3, *size, generator=numbers)
        seed = int(torch.randint(2**31, (), generator=numbers))
        result = explain(
            null_network(size, seed), clip, 0, method, (RATIO,), preset, seed, progress=False, **more
        )
        assert isinstance(result, Explanation)
        found.append(result.masks)
    return torch.cat(found)


def row(masks: Tensor, method: str, preset: str) -> dict:
    frames = frame_shares(masks)
    numbers = {
        "border": border_bias(masks),
        "border_p": chance_in_space(masks),
        "frames_min": float(frames.min()),
        "frames_max": float(frames.max()),
        "frames_p": chance_in_time(masks),
        "first": float(frames[0]),
        "middle": float(frames[len(frames) // 2]),
        "last": float(frames[-1]),
        "mean": float(masks.mean()),
    }
    about = {"method": method, "preset": preset, "networks": len(masks)}
    return about | {k: round(v, 4) for k, v in numbers.items()}


def write_report(size: tuple[int, int, int]) -> None:
    """benchmarks/null_test.md and .png from what is stored."""
    lines = [
        f"| {r.method} | {r.preset} | {r.networks} | {r.border:+.3f} ({r.border_p:.2f}) | "
        f"{r.frames_min:.2f} .. {r.frames_max:.2f} ({r.frames_p:.2f}) | "
        f"{r.first:.2f}, {r.middle:.2f}, {r.last:.2f} | {r.mean:.3f} |"
        for r in pd.read_csv(TABLE).itertuples()
    ]
    text = f"""# Null test

Random linear networks on noise, {" x ".join(map(str, size))}, ratio {RATIO}. By `benchmarks/null_test.py`.
Neutral is 0 for the border (share of the mask in the outer 11 of 112 pixels, less the area's share) and 1 for
each frame (its mean over the mean of all). In brackets: how often masks moved at random lie as far from
neutral, so small numbers are habits and the others chance. Wanted of our defaults: within .05, and .8 .. 1.2
but for chance.

| method | preset | networks | border (p) | frames, least and most (p) | first, middle, last | mean |
|---|---|---|---|---|---|---|
"""
    here = Path(__file__)
    here.with_suffix(".md").write_text(text + "\n".join(lines) + "\n")
    means = {name: v.float() for name, v in load_file(MEANS).items()}
    order = [f"{m}, {p}" for m in ("ep3d", "step") for p in ("released", "lesson") if f"{m}, {p}" in means]
    title = "Mean mask of networks that know nothing"
    shown = {name.replace(", ", "\n"): means[name] for name in order}
    figures.save(
        figures.maps(shown, label="mean mask", limits=(0, 3 * RATIO), title=title), here.with_suffix(".png")
    )


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--networks", nargs="+", type=int, default=[48, 8], help="of each preset")
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    options.add_argument("--presets", nargs="+", default=["lesson", "released"])
    options.add_argument("--size", nargs=3, type=int, default=[16, 112, 112])
    chosen = options.parse_args()
    size = tuple(chosen.size)
    done = set()
    if TABLE.exists():
        done = set(pd.read_csv(TABLE)[["method", "preset"]].itertuples(index=False, name=None))
    for preset, networks in zip(chosen.presets, chosen.networks, strict=True):
        for method in chosen.methods:
            if (method, preset) in done:
                continue
            start = time.perf_counter()
            masks = null_masks(method, preset, networks, size)
            line = pd.DataFrame([row(masks, method, preset)])
            line.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
            print(
                line.to_string(header=False, index=False), f"{time.perf_counter() - start:.0f} s", flush=True
            )
            if method in ("ep3d", "step"):
                means = load_file(MEANS) if MEANS.exists() else {}
                means[f"{method}, {preset}"] = F.avg_pool2d(masks.mean(0), 4).half()
                save_file(means, MEANS)
    write_report(size)


if __name__ == "__main__":
    main()
