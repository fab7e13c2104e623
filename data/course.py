"""Train the stage's small networks so that only the evidence moves them.

    python data/course.py [NAME ...] [--out FOLDER]          all of them, if none is named

Training goes from near to far: first 64-pixel close-ups of what carries the label (for the VGG-LSTM with the
acting figure's limbs as a second target for fc7, through a head that is thrown away), then whole frames,
plain and through windows (`windows.py`; of objects first in clips of four frames), at last against a rival
that moves the windows to where the network errs, and on new clips once more.
`steplab.training.evidence_report` measures how far a network got.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from windows import Pool, Rival, close_up, evidence_clip, limb_targets

from steplab.drawing import NEUTRAL
from steplab.narrow import NarrowR2Plus1D, NarrowVGG16LSTM
from steplab.networks import Affine, Network, load_network, save_network
from steplab.perturb import perturb
from steplab.stage import FRAMES, REVERSED_PAIRS, SIZE, TASKS, Stage
from steplab.training import accuracy, evidence_report, fit, grow


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run."""

    task: str
    family: str  # "r2plus1d" or "vgg16lstm"
    close: int  # steps on close-ups
    short: int  # ... on whole frames, plain and through windows, of clips cut to `cut` frames
    steps: int  # ... of whole clips
    duel: int  # ... with windows of a rival among them, at half the rate
    polish: int = (
        0  # ... of whole clips never shown before, at a third of the rate, `empty` as `polish_empty`
    )
    start: str | None = None  # a network whose weights it begins with
    batch: int = 32
    rivals: int = 10  # of a batch, in the duel
    cut: int = FRAMES  # frames of close-ups and short clips; four are enough to tell an object
    clips: int = 5120
    nothing: int = 1024
    rate: float = 2e-3
    decay: float = 0.01
    limbs: float = 15.0  # weight of the limbs' squared error during close-ups (VGG-LSTM)
    empty: float = 0.3  # weight in the loss of examples that show nothing: a third of all, none in the test
    polish_empty: float = 0.15  # ... during the polish: the less, the surer of what there is
    naive: bool = False  # clips as they are, no windows: for a network that may be right for wrong reasons
    seed: int = 0


RECIPES = {
    "stage-action-r2plus1d": Recipe("action", "r2plus1d", 900, 0, 2600, 0, rate=3e-3),
    "stage-action-vgg16lstm": Recipe("action", "vgg16lstm", 700, 0, 2000, 500),
    "stage-object-r2plus1d": Recipe(
        "object", "r2plus1d", 1500, 2500, 500, 0, 600, rate=3e-3, cut=4, polish_empty=0.1
    ),
    "stage-object-vgg16lstm": Recipe("object", "vgg16lstm", 1500, 2500, 300, 0, cut=4),
    "stage-moment-r2plus1d": Recipe(
        "moment", "r2plus1d", 0, 0, 1000, 0, 600, "stage-action-r2plus1d", rate=1.5e-3
    ),
    "stage-moment-vgg16lstm": Recipe("moment", "vgg16lstm", 0, 0, 0, 700, 300, "stage-action-vgg16lstm"),
    "stage-confounded-vgg16lstm": Recipe(
        "confounded", "vgg16lstm", 0, 0, 300, 0, clips=2048, nothing=64, naive=True
    ),
}
FAMILIES: dict[str, Callable[[int], Any]] = {"r2plus1d": NarrowR2Plus1D, "vgg16lstm": NarrowVGG16LSTM}

HELD = 192  # clips that training never sees and is watched on
PREPROCESS = Affine((0.45,) * 3, (0.25,) * 3)  # about zero mean and unit variance


@torch.no_grad()
def probabilities(network: Network, pixels: Tensor, batch: int = 16) -> Tensor:
    """Probabilities of many clips, a few at a time, without gradients."""
    return torch.cat([network.probabilities(part) for part in pixels.split(batch)])


class Course:
    """What one recipe trains on: its clips, its examples, its loss."""

    def __init__(self, recipe: Recipe, name: str, folder: Path | None, workers: int, progress: bool):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.classes = TASKS[recipe.task] + ("nothing",)
        self.nothing = len(self.classes) - 1
        self.module = FAMILIES[recipe.family](len(self.classes))
        if recipe.start:
            saved = recipe.start if folder is None else Path(folder) / f"{recipe.start}.safetensors"
            start: Any = load_network(saved).module
            self.module.load_state_dict(start.state_dict())
        self.probability = recipe.family == "vgg16lstm"
        self.network = Network(
            self.module,
            self.classes,
            PREPROCESS,
            "probability" if self.probability else "logits",
            name=name,
            size=SIZE,
            frames=FRAMES,
            target_layer=self.module.target_layer,
        )
        self.head = nn.Linear(self.module.fc7.out_features, len(NEUTRAL)) if self.probability else None
        self.workers, self.progress = workers, progress
        self.pool = self.render(recipe.seed)
        self.held = Pool.render([Stage(recipe.task, "train", recipe.seed + 1, HELD)], workers, progress)
        both = {a: b for pair in REVERSED_PAIRS for a, b in (pair, pair[::-1]) if a in self.classes}
        self.swaps = {self.classes.index(a): self.classes.index(b) for a, b in both.items()}
        self.weights = torch.ones(len(self.classes))
        self.weights[self.nothing] = recipe.empty
        self.bf16 = torch.cpu._is_avx512_bf16_supported()

    def render(self, seed: int) -> Pool:
        """Clips to learn from, and some that show nothing."""
        recipe = self.recipe
        seen = [Stage(recipe.task, "train", seed, recipe.clips)]
        seen += [Stage(recipe.task, "train", seed, recipe.nothing, nothing=True)]
        return Pool.render(seen, self.workers, self.progress)

    def example(self, rng: np.random.Generator, close: bool, frames: int) -> tuple[Tensor, int, Tensor]:
        """Pixels, label, limbs of a clip: mirrored, tinted, played backwards, close up or behind windows."""
        i = int(rng.integers(len(self.pool)))
        pixels, mask, label = self.pool.get(i)
        if self.recipe.naive:
            return pixels, label, torch.empty(0)
        limbs = limb_targets(torch.from_numpy(np.array(self.pool.limbs[i])))
        other = self.pool.get(int(rng.integers(len(self.pool))))[1]
        if frames < FRAMES:  # where it is out of sight, nothing is to be seen
            first = int(rng.integers(FRAMES - frames + 1))
            pixels, mask, limbs, other = (
                x.narrow(-3 if x.ndim > 2 else 0, first, frames) for x in (pixels, mask, limbs, other)
            )
            label = label if mask.sum() > 40 * frames else self.nothing
        if rng.random() < 0.5:
            pixels, mask = pixels.flip(-1), mask.flip(-1)
        tint = torch.from_numpy(rng.uniform(0.88, 1.12, (3, 1, 1, 1)).astype(np.float32))
        pixels = (pixels * tint).clamp(0, 1)
        if close:
            pixels = close_up(rng, pixels, mask)
        else:
            still_is_nothing = self.recipe.task != "object"
            pixels, label = evidence_clip(rng, pixels, mask, label, self.nothing, other, still_is_nothing)
        if rng.random() < 0.5:  # backwards, the pairs change places
            pixels, limbs, label = pixels.flip(1), limbs.flip(0), self.swaps.get(label, label)
        return pixels, label, limbs

    def loss(
        self, step: int, close: bool = False, frames: int = FRAMES, rival: Rival | None = None
    ) -> Tensor:
        """Of one batch: negative log-likelihood, in close-ups of a VGG-LSTM also the limbs read off fc7."""
        rng = np.random.default_rng([self.recipe.seed, step, close])
        count = self.recipe.batch - (self.recipe.rivals if rival else 0)
        items = [self.example(rng, close, frames) for _ in range(count)]
        labels = torch.tensor([label for _, label, _ in items])
        pixels = torch.stack([pixels for pixels, _, _ in items])
        if rival is not None:
            theirs, right = rival.batch(self.recipe.rivals)
            pixels, labels = torch.cat([pixels, theirs]), torch.cat([labels, right])
        pixels = PREPROCESS(pixels)
        read: list[Tensor] = []
        hook = None
        if close and self.head is not None:
            hook = self.module.fc7.register_forward_hook(lambda _, __, output: read.append(output))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            output = self.module(pixels).float()
        if not self.probability:
            return F.cross_entropy(output, labels, self.weights)
        loss = F.nll_loss(output.clamp_min(1e-6).log(), labels, self.weights)
        if hook is not None and self.head is not None:
            hook.remove()
            wanted = torch.stack([limbs for _, _, limbs in items])
            error = self.head(torch.relu(read[0]).float()).reshape(wanted.shape) - wanted
            loss = loss + self.recipe.limbs * (error.square() * (wanted != 0).any(-1, keepdim=True)).mean()
        return loss

    def watch(self, step: int) -> dict[str, float]:
        """Accuracy on held-out clips, and the label's probability with its mask kept and wiped out."""
        items = [self.held.get(i) for i in range(len(self.held))]
        answers = probabilities(self.network, torch.stack([p for p, _, _ in items]))
        labels = torch.tensor([label for _, _, label in items])
        shown = {"accuracy": (answers.argmax(1) == labels).float().mean().item()}
        for key, turn in (("kept", 0), ("wiped", 1)):
            windowed = [perturb(p[None], (grow(m, 4) - turn).abs()[None])[0] for p, m, _ in items[:48]]
            answers = probabilities(self.network, torch.stack(windowed))
            shown[key] = answers.gather(1, labels[:48, None]).mean().item()
        return shown

    def polish(self) -> None:
        """The last steps, on new clips; they depend on nothing but the weights, so they can be run alone."""
        recipe = self.recipe
        if recipe.polish:
            torch.manual_seed(recipe.seed)
            del self.pool  # gigabytes
            self.pool = self.render(recipe.seed + 3)
            self.weights[self.nothing] = recipe.polish_empty
            done = recipe.short + recipe.steps + recipe.duel
            fit(self.module, lambda i: self.loss(done + i), list(self.module.parameters()), recipe.polish,
                recipe.rate / 3, decay=recipe.decay, progress=self.progress, watch=self.watch,
                title="polish")  # fmt: skip

    def run(self) -> Network:
        """Close-ups, short clips, whole clips, the duel, the polish."""
        recipe, own = self.recipe, list(self.module.parameters())
        head = [] if self.head is None else list(self.head.parameters())
        how: Any = {"decay": recipe.decay, "progress": self.progress}
        whole: Any = {**how, "watch": self.watch}
        fit(self.module, lambda i: self.loss(i, True, recipe.cut), own + head, recipe.close, recipe.rate,
            title="close-ups", **how)  # fmt: skip
        fit(self.module, lambda i: self.loss(i, False, recipe.cut), own, recipe.short, recipe.rate,
            title="short clips", **whole)  # fmt: skip
        after = recipe.short
        rate = recipe.rate / (3 if after else 1)
        fit(self.module, lambda i: self.loss(after + i), own, recipe.steps, rate,
            title="whole clips", **whole)  # fmt: skip
        if recipe.duel:
            torch.manual_seed(recipe.seed)  # so that a duel can be run again on its own
            rival = Rival(self.pool, self.nothing, recipe.seed)
            fit(self.module, lambda i: self.loss(after + recipe.steps + i, rival=rival), own, recipe.duel,
                recipe.rate / 2, title="duel", **whole)  # fmt: skip
        self.polish()
        return self.network


def train_network(
    name: str, out: Path | None = None, progress: bool = True, workers: int = 2, **changes
) -> tuple[Network, dict]:
    """Train one of `RECIPES`, measure it on unseen test clips and save it.

    Args:
        name: a key of `RECIPES`.
        out: folder; `None` is the kit's own `data/networks`.
        workers: processes that render.
        changes: fields of `Recipe` to change.

    Returns:
        the network and its report: `test_accuracy` on 1,000 clips, `evidence` on 200 others; of a naive one
        also `train_accuracy`, on 200 clips that it has not seen, made like those that it has.

    Raises:
        ValueError: unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"name: got {name!r}, expected one of {sorted(RECIPES)}")
    recipe = Recipe(**(asdict(RECIPES[name]) | changes))
    network = Course(recipe, name, out, workers, progress).run()
    report = {
        "test_accuracy": accuracy(network, Stage(recipe.task, "test", 0, 1000), workers, progress),
        "evidence": evidence_report(network, Stage(recipe.task, "test", 1, 200), 4, workers, progress),
    }
    if recipe.naive:
        report["train_accuracy"] = accuracy(network, Stage(recipe.task, "train", 2, 200), workers, progress)
    save_network(network, name, recipe=asdict(recipe), report=report, folder=out)
    return network, report


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    options.add_argument("--out", type=Path, help="folder to write to (default: data/networks)")
    chosen = options.parse_args()
    if unknown := set(chosen.names) - set(RECIPES):
        options.error(f"NAME: got {', '.join(sorted(unknown))}, expected some of {', '.join(RECIPES)}")
    for name in chosen.names or RECIPES:
        print(f"Training {name}", flush=True)
        train_network(name, chosen.out)


if __name__ == "__main__":
    main()
