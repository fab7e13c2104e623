"""Null test: where does a method look when there is nothing to see?

    python benchmarks/null_test.py [--presets lesson released] [--networks 48 8] [--size 16 112 112]

Each clip is noise, each network a small random linear map of the pixels: no place and no frame means
anything, so the mean mask over many of them must be flat. Writes benchmarks/null_test.png (mean mask of
each frame) and benchmarks/null_test.md (share of the border, of each frame).
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from steplab.config import METHODS
from steplab.explain import explain
from steplab.networks import Network

RATIO = 0.1


def null_masks(
    method: str,
    preset: str,
    networks: int,
    size: tuple[int, int, int],
    seed: int = 0,
    signal: float = 1e-3,
    **more,
) -> Tensor:
    """Masks (networks, T, H, W) of `networks` null networks. `signal` 0: they ignore their input."""
    numbers = torch.Generator().manual_seed(seed)
    weights = torch.randn(networks, 3, *size, generator=numbers).flatten(1) * signal
    clips = torch.rand(networks, 3, *size, generator=numbers)
    # output i is null network i; clip i is explained by it
    network = Network(lambda x: x.flatten(1) @ weights.T, [str(i) for i in range(networks)], name="null")
    found = []
    for i in range(networks):  # each with a seed of its own: one seed, one habit
        found.append(explain(network, clips[i], i, method, (RATIO,), preset, i, progress=False, **more).masks)
    return torch.cat(found)


def border_bias(masks: Tensor) -> float:
    """Share of the mask in the border (11 px of 112) less the border's share of the frame; 0 is neutral."""
    height, width = masks.shape[-2:]
    b = round(11 * min(height, width) / 112)
    inside = masks[..., b : height - b, b : width - b]
    return float(1 - inside.sum() / masks.sum()) - (1 - inside[0, 0].numel() / (height * width))


def frame_shares(masks: Tensor) -> Tensor:
    """Mean mask of each frame over the mean of all; 1 is neutral."""
    return masks.mean(dim=(0, 2, 3)) / masks.mean()


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--networks", nargs="+", type=int, default=[48, 8], help="of each preset")
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    options.add_argument("--presets", nargs="+", default=["lesson", "released"])
    options.add_argument("--size", nargs=3, type=int, default=[16, 112, 112])
    options.add_argument("--iterations", type=int, help="instead of the preset's")
    chosen = options.parse_args()
    size = tuple(chosen.size)
    folder = Path(__file__).parent
    rows, shown = [], {}
    for method in chosen.methods:
        for preset, networks in zip(chosen.presets, chosen.networks, strict=True):
            start = time.perf_counter()
            more = {"iterations": chosen.iterations} if chosen.iterations else {}
            masks = null_masks(method, preset, networks, size, **more)
            frames = frame_shares(masks)
            means = masks.mean(dim=(1, 2, 3))
            rows.append(
                f"| {method} | {preset} | {networks} | {border_bias(masks):+.3f} | "
                f"{frames.min():.2f} .. {frames.max():.2f} | "
                f"{frames[0]:.2f}, {frames[size[0] // 2]:.2f}, {frames[-1]:.2f} | "
                f"{means.mean():.3f} |"
            )
            print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
            if method in ("ep3d", "step"):
                shown[f"{method}, {preset}"] = masks[: min(chosen.networks)].mean(0)
    text = f"""# Null test

Random linear networks on noise, {" x ".join(map(str, size))}, ratio {RATIO}.
By `benchmarks/null_test.py`. Neutral is 0 for the border (share of the mask in the outer 11 of 112 pixels,
less the area's share) and 1 for each frame (its mean over the mean of all). Wanted of our defaults: within
.05, and .8 .. 1.2 but for chance: a few dozen independent blobs are not flat.

| method | preset | networks | border | frames, least and most | first, middle, last | mean of the masks |
|---|---|---|---|---|---|---|
""" + "\n".join(rows)
    (folder / "null_test.md").write_text(text + "\n")
    if shown:
        figure, axes = plt.subplots(len(shown), size[0], figsize=(size[0], 1.15 * len(shown)), squeeze=False)
        for row, (name, mean) in zip(axes, shown.items(), strict=True):
            for t, axis in enumerate(row):
                axis.imshow(mean[t], vmin=0, vmax=3 * RATIO, cmap="magma")
                axis.set(xticks=[], yticks=[])
            row[0].set_ylabel(name.replace(", ", "\n"), fontsize=7)
        figure.suptitle(
            f"Mean mask of {min(chosen.networks)} networks that know nothing, frame by frame", fontsize=9
        )
        figure.savefig(folder / "null_test.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
