"""How far are masks from the best there is? Regret: the best probability known less the one found.

    python benchmarks/optimality.py [--clips 8] [--ratios .05] [--methods step ep3d ...] [--families ...]

For clips of the stage that a narrow network gets right. The best known is the largest probability that any
mask of the same ratio kept: masks fitted to the true mask, to the hottest voxels of each baseline, found from
other random seeds, in more iterations, from the mask of twice the ratio, and by every method in the table. A
heat map is brought into the family of masks by a search too: a "network" that sees a clip of ones faded to
black sees the mask itself, and is the less happy the further it lies from what is wanted. Rows go to
benchmarks/optimality.csv as they come; what is there is not measured again. Writes benchmarks/optimality.md.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from convergence import FAMILIES, recognised
from torch import Tensor

from steplab.config import PRESETS
from steplab.explain import Explanation, explain
from steplab.metrics import interval
from steplab.networks import Network, load_network
from steplab.perturb import hottest_first, perturb
from steplab.stage import Record
from steplab.training import grow

TABLE = Path(__file__).with_suffix(".csv")
OURS = ("step", "ep3d")
BASELINES = ("grad-cam", "integrated-gradients", "rise")
CONTROLS = ("middle", "random")
MORE = 4  # times the iterations


def fitted(wanted: Tensor, ratio: float) -> Tensor:
    """The mask (T, H, W) of the ratio that lies nearest to `wanted`, in squares."""

    def nearness(pixels: Tensor) -> Tensor:
        near = -((pixels.mean(1) - wanted) ** 2).mean((1, 2, 3)) / wanted.mean()
        return torch.stack([near, torch.zeros_like(near)], 1)

    canvas = torch.ones(3, *wanted.shape)
    ask = {"perturbation": "fade-black", "reward_reach": (0.0, 0.0), "progress": False}
    found = explain(Network(nearness, ("near", "far")), canvas, 0, "ep3d", (ratio,), **ask)
    assert isinstance(found, Explanation)
    return found.masks[0]


def kept(network: Network, record: Record, mask: Tensor) -> float:
    with torch.no_grad():
        shown = perturb(record.clip.pixels[None], mask[None])
        return float(network.probabilities(shown)[0, record.label])


def sources(network: Network, record: Record, ratio: float):
    """Each source's name, and a function that gives the probability its mask of `ratio` keeps."""

    def search(method: str, **more) -> float:
        found = explain(network, record.clip, record.label, method, (ratio,), progress=False, **more)
        assert isinstance(found, Explanation)
        return float(found.probability[0])

    def hottest(method: str) -> float:
        found = explain(network, record.clip, record.label, method, (ratio,), progress=False)
        assert isinstance(found, Explanation)
        size = round(ratio * found.heatmap.numel())
        return kept(network, record, fitted((hottest_first(found.heatmap) < size).float(), ratio))

    for method in OURS:
        yield method, lambda method=method: search(method)
    for method in (*BASELINES, *CONTROLS):
        yield method, lambda method=method: hottest(method)
    yield "true mask", lambda: kept(network, record, fitted(grow(record.mask.float(), 4), ratio))
    for seed in (1, 2):
        yield f"ep3d, seed {seed}", lambda seed=seed: search("ep3d", seed=seed)
    yield "ep3d, gradient hardly blurred", lambda: search("ep3d", reward_reach=(1.0, 0.04))
    longer = {name: MORE * PRESETS["lesson"][name] for name in ("iterations", "shrink")}
    yield f"ep3d, {MORE} x the iterations", lambda: search("ep3d", **longer, learning_rate=0.1)


def known() -> pd.DataFrame:
    columns = ["family", "clip", "ratio", "source", "probability"]
    return pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=columns)


def measure(family: str, chosen: argparse.Namespace) -> None:
    """Append a row for each clip, ratio and source that the table does not hold yet."""
    network = load_network(f"stage-action-{family}")
    for record in recognised(network, chosen.clips):
        for ratio in chosen.ratios:
            rows = known().query("family == @family and clip == @record.name and ratio == @ratio")
            for name, ask in sources(network, record, ratio):
                if name in set(rows.source):
                    continue
                row = {"family": family, "clip": record.name, "ratio": ratio, "source": name}
                line = pd.DataFrame([row | {"probability": round(ask(), 4)}])
                line.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
                print(line.to_string(header=False, index=False), flush=True)


def report() -> str:
    lines = [
        "# How far from the best mask",
        "",
        'Clips of `Stage("action", "test", seed=1)` that the network gets right. Regret: the largest',
        "probability that any of the sources kept at that ratio, less what this one keeps; mean and 95 %",
        "bootstrap interval over clips. Baselines: their hottest voxels, brought into the family of masks.",
        "By `benchmarks/optimality.py`, which says how each source came about; rows in `optimality.csv`.",
    ]
    for (family, ratio), rows in known().groupby(["family", "ratio"]):
        table = rows.pivot(index="clip", columns="source", values="probability").dropna()
        best = table.max(axis=1)
        lines += ["", f"## stage-action-{family}, ratio {ratio:g}, {len(table)} clips", ""]
        lines += [f"Best known: p {best.mean():.3f} on average, {best.min():.3f} at least.", ""]
        lines += ["| source | p | worst | regret | best of all |", "|---|---|---|---|---|"]
        order = table.mean().sort_values(ascending=False)
        for name in order.index:
            p, first = table[name], (table[name] >= best - 0.005).mean()
            regret = interval(best - p)
            lines.append(f"| {name} | {p.mean():.3f} | {p.min():.3f} | {regret} | {first:.0%} |")
    return "\n".join(lines) + "\n"


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--clips", type=int, default=8)
    options.add_argument("--ratios", nargs="+", type=float, default=[0.05])
    options.add_argument("--families", nargs="*", default=FAMILIES, help="none: only write the report anew")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    for family in chosen.families:
        measure(family, chosen)
    TABLE.with_suffix(".md").write_text(report())
    print(report())


if __name__ == "__main__":
    main()
