"""Ways to search for masks: what the masks keep, and how often the network is asked.

    python benchmarks/searches.py [--clips 12] [--only NAME ...]

All as preset `quick` but for what the name says, and, where it says nothing of them, with plain momentum and
steps alike; one ratio, the same clips of the stage, both narrow networks. A pass is one forward and backward
of the network for one mask. Reports means, and differences to the first row paired by clip, with 95 %
bootstrap intervals. Rows go to benchmarks/searches.csv as they come; what is there is not measured again:
delete it after a change. Writes benchmarks/searches.md from all rows.
"""

import argparse
import importlib
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from convergence import FAMILIES, marks, recognised

from steplab.engine import Descent, untouched
from steplab.explanation import Explanation
from steplab.metrics import compare
from steplab.networks import Network, load_network

door = importlib.import_module("steplab.explain")  # whose `Descent` is exchanged
TABLE = Path(__file__).with_suffix(".csv")
RATIO = 0.1
KEYS = ("probability", "IoU", "S-PT", "mean / ratio", "passes")


class Falling(Descent):
    """Steps that become a third as long by the end."""

    def direction(self, gradient):
        return super().direction(gradient) * 3 ** -(self.iteration / self.config.iterations)


class LineSearch(Descent):
    """Steps halved, three times at most, until the energy falls."""

    def ask(self, masks, answer):
        if torch.is_grad_enabled():
            return super().ask(masks, answer)
        return answer(masks), torch.zeros_like(masks)  # a try, which only its energy is asked of

    def direction(self, gradient):
        ahead, before, c = super().direction(gradient).clone(), self.seeds.detach().clone(), self.config
        now = float(self.terms_sum())
        for _ in range(3):
            with torch.no_grad():
                step = (ahead * (c.learning_rate * self.pace)).clamp(-c.largest_step, c.largest_step)
                self.seeds.copy_((before - step).clamp(0, 1))
                self.energy(self.draw, self.answer, self.press)
                fell = float(self.terms_sum()) <= now
                self.seeds.copy_(before)
            if fell:
                break
            ahead /= 2
        return ahead

    def terms_sum(self):
        return torch.stack([*self.terms.values()]).sum()


class QuasiNewton(Descent):
    """L-BFGS: the gradient times an inverse Hessian told from the last five steps."""

    def direction(self, gradient):
        g, x = gradient.flatten(), self.seeds.detach().clone().flatten()
        if not self.iteration:
            self.pairs = []
        else:
            s, y = x - self.before[0], g - self.before[1]
            if s @ y > 1e-10 * (y @ y):
                self.pairs = [*self.pairs[-4:], (s, y)]
        self.before, left = (x, g), []
        for s, y in reversed(self.pairs):
            a = (s @ g) / (s @ y)
            left.append(a)
            g = g - a * y
        for (s, y), a in zip(self.pairs, reversed(left), strict=True):
            g = g + s * (a - (y @ g) / (s @ y))
        # the inverse Hessian's own scale is of steps, not of gradients: brought to the gradient's length
        return (g * (gradient.norm() / g.norm().clamp(1e-12))).view_as(gradient)


class Coarse(Descent):
    """While the ratio falls, blocks of seeds move as one."""

    block = (1, 2, 2)

    def direction(self, gradient):
        if self.iteration < self.config.shrink:
            small = F.avg_pool3d(gradient[:, None], self.block)
            gradient = F.interpolate(small, size=gradient.shape[1:], mode="nearest")[:, 0]
        return super().direction(gradient)


class CoarseInTime(Coarse):
    block = (4, 1, 1)


class Warm(Descent):
    """Starts where the same clip's last, larger ratio ended."""

    last: dict = {}

    def __init__(self, score, pixels, targets, clips, ratios, config, start=None, seed=0):
        if ratios[0] < self.last.get("ratio", 0):
            start = self.last["seeds"]
        super().__init__(score, pixels, targets, clips, ratios, config, start, seed)

    def finish(self, trim=False):
        Warm.last = {"ratio": self.ratios[0], "seeds": self.seeds.detach().clone()}
        return super().finish(trim)


class Still(Descent):
    """Asks the network again only where masks have moved, after five iterations at the latest."""

    def ask(self, masks, answer):
        if self.known is None or self.age > 4 or float((masks - self.at).abs().mean()) > 0.01:
            self.at, self.age = masks.detach(), 0
            return super().ask(masks, answer)
        self.age += 1
        return self.known


class Integrated(Descent):
    """As in iGOS: the network's gradient averaged along the way from no mask to this one."""

    def answer(self, masks):
        log_p = super().answer(masks)
        along = [super(Integrated, self).answer(share * masks) for share in (1 / 3, 2 / 3)]
        mean = (log_p + sum(along)) / 3
        return log_p.detach() + mean - mean.detach()


BASE = "momentum .5, steps alike, network every time"
PLAIN = {"optimiser": "momentum"}
SEARCHES: dict[str, tuple[type[Descent], dict]] = {
    BASE: (Descent, {}),
    "Adam (`quick`)": (Descent, {"optimiser": "adam"}),
    "Adam, 10 iterations to shrink": (Descent, {"optimiser": "adam", "shrink": 10}),
    "steps fall from 1.5 to .5": (Falling, {"learning_rate": 0.15}),
    "Adam, steps fall from 1.5 to .5": (Falling, {"learning_rate": 0.15, "optimiser": "adam"}),
    "network every second time": (Descent, {"ask_every": 2}),
    "network every third time": (Descent, {"ask_every": 3}),
    "network only where masks moved": (Still, {}),
    "no momentum": (Descent, {"momentum": 0.0, "dampening": 0.0}),
    "momentum .9": (Descent, {"momentum": 0.9, "dampening": 0.9}),
    "line search": (LineSearch, {}),
    "quasi-Newton (L-BFGS)": (QuasiNewton, {}),
    "coarse first, 14 px": (Coarse, {}),
    "coarse first, 4 frames": (CoarseInTime, {}),
    "warm start from ratio .2": (Warm, {}),
    "warm start, 8 iterations to shrink": (Warm, {"shrink": 8, "iterations": 40}),
    "integrated gradients (iGOS)": (Integrated, {}),
    "integrated, a third of iterations": (Integrated, {"iterations": 24, "shrink": 8, "patience": 3}),
    "half the iterations": (Descent, {"iterations": 30, "shrink": 10, "patience": 3}),
    "half, steps twice as long": (
        Descent,
        {"iterations": 30, "shrink": 10, "patience": 3, "learning_rate": 0.2, "largest_step": 0.4},
    ),
    "double the iterations (lesson)": (Descent, {"iterations": 150, "shrink": 80, "patience": 10}),
}


def counted(network: Network) -> tuple[Network, list[float]]:
    """The network, and a list to which each question adds its cost: without a backward, a third of a pass."""
    asked: list[float] = []

    def fn(pixels):
        asked.append(len(pixels) * (1.0 if pixels.requires_grad else 1 / 3))
        return network.fn(pixels)

    return Network(fn, network.classes, network.preprocess, network.output, name=network.name), asked


def known() -> pd.DataFrame:
    return pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["family", "clip", "search", *KEYS])


def measure(family: str, chosen: argparse.Namespace) -> None:
    """Append a row for each clip and search that benchmarks/searches.csv does not hold yet."""
    network = load_network(f"stage-action-{family}")
    for record in recognised(network, chosen.clips):
        rows = known().query("family == @family and clip == @record.name")
        for name in [n for n in chosen.only if n not in set(rows.search)]:
            door.Descent, more = SEARCHES[name]
            ours, asked = counted(network)
            ask = {
                "target": record.label,
                "method": "step",
                "preset": "quick",
                "progress": False,
                "ask_every": 1,
                **PLAIN,
                **more,
            }
            if door.Descent is Warm:
                door.explain(ours, record.clip, ratios=(0.2,), **ask)
                asked.clear()
            with untouched(network):
                found = door.explain(ours, record.clip, ratios=(RATIO,), **ask)
            assert isinstance(found, Explanation)
            row = {"family": family, "clip": record.name, "search": name, **marks(found, record, RATIO)}
            row = {k: v for k, v in row.items() if k != "iterations"} | {"passes": sum(asked)}
            line = pd.DataFrame([row]).round(4)
            line.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
            print(line.to_string(header=False, index=False), flush=True)


def report() -> str:
    lines = [
        "# Ways to search for a mask",
        "",
        f"STEP, ratio {RATIO:g}, clips of the stage that the network gets right, one mask at a time. All",
        "as preset `quick` but for what the name says, and, where it says nothing of them, with plain",
        "momentum, steps alike and the network asked in every iteration. A pass is a forward and a backward",
        "of the network; a forward alone counts a third. Below each mean, the difference to the first row on",
        "the same clips, with its 95 % bootstrap interval. Rows in `searches.csv`, by",
        "`benchmarks/searches.py`, which holds each search in a few lines.",
    ]
    for family, rows in known().groupby("family"):
        tables = {str(name): part.set_index("clip")[[*KEYS]] for name, part in rows.groupby("search")}
        base = tables[BASE]
        lines += ["", f"## stage-action-{family}, {len(base)} clips", ""]
        lines += ["| search | " + " | ".join(KEYS) + " |", "|---" * (len(KEYS) + 1) + "|"]
        for name in [n for n in SEARCHES if n in tables]:
            mine = tables[name]
            clips = mine.index.intersection(base.index)
            cells = [f"{mine[k].mean():.3f}" for k in KEYS]
            if name != BASE:
                differences = [compare(mine.loc[clips, k], base.loc[clips, k]) for k in KEYS]
                cells = [f"{a}<br>{b}" for a, b in zip(cells, differences, strict=True)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--clips", type=int, default=12)
    options.add_argument("--families", nargs="*", default=FAMILIES, help="none: only write the report anew")
    options.add_argument("--only", nargs="*", choices=SEARCHES, default=[*SEARCHES])
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    for family in chosen.families:
        measure(family, chosen)
    TABLE.with_suffix(".md").write_text(report())
    print(report())


if __name__ == "__main__":
    main()
