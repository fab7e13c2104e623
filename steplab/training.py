"""Train the stage's small networks so that only the evidence moves them.

A network trained on plain clips will read an action off a moving window that is blurred or greyed out: the
window performs the action itself. So training shows windows that mean nothing: cut from other clips, moving
over still pictures, wiping out the actor; the right answer is then "nothing". With the evidence kept and all
else perturbed, the answer stays. `evidence_report` measures how far a network got.

Training goes from near to far: first 64-pixel close-ups of what carries the label (for the VGG-LSTM with the
acting figure's limbs as a second target for fc7, through a head that is thrown away), then whole frames.

    network, report = train_network("stage-action-r2plus1d")
"""

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .drawing import NEUTRAL
from .narrow import NarrowR2Plus1D, NarrowVGG16LSTM
from .networks import Affine, Network, load_network, save_network
from .perturb import perturb
from .stage import FRAMES, REVERSED_PAIRS, SIZE, TASKS, Stage

FADES = ("fade-mean", "fade-black", "fade-grey")


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run."""

    task: str
    family: str  # "r2plus1d" or "vgg16lstm"
    steps: tuple[int, ...]  # on whole frames; each number one cycle, at half the rate of the cycle before
    close: int = 700  # on close-ups before
    start: str | None = None  # a network whose weights it begins with
    batch: int = 32
    clips: int = 5120
    nothing: int = 1024
    rate: float = 2e-3
    decay: float = 0.01
    limbs: float = 15.0  # weight of the limbs' squared error during close-ups (VGG-LSTM)
    seed: int = 0


RECIPES = {
    "stage-action-r2plus1d": Recipe("action", "r2plus1d", (1000, 800), close=900, rate=3e-3),
    "stage-action-vgg16lstm": Recipe("action", "vgg16lstm", (1000, 900)),
    "stage-object-r2plus1d": Recipe("object", "r2plus1d", (1200,), close=500, rate=3e-3),
    "stage-object-vgg16lstm": Recipe("object", "vgg16lstm", (1200,), close=500),
    "stage-moment-r2plus1d": Recipe("moment", "r2plus1d", (400,), close=0, start="stage-action-r2plus1d"),
    "stage-moment-vgg16lstm": Recipe("moment", "vgg16lstm", (500,), close=0, start="stage-action-vgg16lstm"),
}
FAMILIES: dict[str, Callable[[int], Any]] = {"r2plus1d": NarrowR2Plus1D, "vgg16lstm": NarrowVGG16LSTM}

# ----------------------------------------------------------------------------------------------- clips


def _render(arguments) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    stage, index = arguments
    torch.set_num_threads(1)
    record, limbs = stage.play(index)
    pixels = (record.clip.pixels * 255).round().to(torch.uint8)
    return pixels.numpy(), np.packbits(record.mask.numpy()), record.label, limbs


@dataclass
class Pool:
    """Rendered clips in memory: 8-bit pixels, bit-packed masks, labels (600 kB a clip)."""

    pixels: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    limbs: np.ndarray

    @classmethod
    def render(cls, stages: list[Stage], workers: int = 2, progress: bool = True) -> "Pool":
        """Every clip of `stages`, rendered by `workers` processes."""
        todo = [(stage, i) for stage in stages for i in range(len(stage))]
        pixels = np.empty((len(todo), 3, FRAMES, SIZE, SIZE), np.uint8)
        masks = np.empty((len(todo), FRAMES * SIZE * SIZE // 8), np.uint8)
        labels = np.empty(len(todo), np.int64)
        limbs = np.empty((len(todo), FRAMES, len(NEUTRAL)), np.float32)
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as executor:
            done = executor.map(_render, todo, chunksize=16)
            for i, item in enumerate(tqdm(done, "rendering", len(todo), disable=not progress, unit="clip")):
                pixels[i], masks[i], labels[i], limbs[i] = item
        return cls(pixels, masks, labels, limbs)

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, i: int) -> tuple[Tensor, Tensor, int]:
        """Pixels (3, T, H, W) in [0, 1], mask (T, H, W) of 0 and 1, label."""
        mask = np.unpackbits(self.masks[i]).reshape(FRAMES, SIZE, SIZE)
        return (
            torch.from_numpy(self.pixels[i]).float() / 255,
            torch.from_numpy(mask).float(),
            int(self.labels[i]),
        )


# --------------------------------------------------------------------------------------------- windows


def grow(mask: Float[Tensor, "*batch height width"], pixels: int) -> Float[Tensor, "*batch height width"]:
    """The mask with every point grown to a square of `2·pixels + 1` px."""
    rows, columns = (torch.arange(n) for n in mask.shape[-2:])
    tall = ((rows[:, None] - rows[None]).abs() <= pixels).to(mask)
    wide = ((columns[:, None] - columns[None]).abs() <= pixels).to(mask)
    return ((tall @ mask @ wide) > 0.5).to(mask)


def _boxed(mask: Tensor) -> Tensor:
    """Each frame's mask, filled up to its bounding box."""
    rows, columns = mask.amax(-1), mask.amax(-2)

    def between(line):
        return torch.minimum(line.cummax(-1).values, line.flip(-1).cummax(-1).values.flip(-1))

    return between(rows)[..., :, None] * between(columns)[..., None, :]


def _blobs(rng: np.random.Generator) -> Tensor:
    """(T, H, W) smooth random windows that come and go, like masks drawn from coarse seeds."""
    grid = torch.from_numpy(rng.standard_normal((1, 1, int(rng.integers(2, 9)), 7, 7)).astype(np.float32))
    field = F.interpolate(grid, size=(FRAMES, SIZE, SIZE), mode="trilinear", align_corners=False)[0, 0]
    threshold = torch.quantile(field.flatten()[::37], float(rng.uniform(0.7, 0.97)))
    return torch.sigmoid((field - threshold) * 12)


def _perturb(rng: np.random.Generator, pixels: Tensor, mask: Tensor) -> Tensor:
    """The clip where the mask is one; blurred, faded, or another colour where it is zero."""
    if rng.random() < 0.5:
        sigma = float(rng.choice([6.0, 12.0, 20.0, 20.0]))
        return perturb(pixels[None], mask[None], kind="blur", sigma=sigma)[0]
    if rng.random() < 0.7:
        return perturb(pixels[None], mask[None], kind=str(rng.choice(FADES)))[0]
    other = torch.from_numpy(rng.random((3, 1, 1, 1), dtype=np.float32))
    return pixels * mask + other * (1 - mask)


def close_up(rng: np.random.Generator, pixels: Tensor, mask: Tensor, side: int = 64) -> Tensor:
    """A `side`-pixel crop with the mask about in its middle (anywhere, if the mask is empty)."""
    points = mask.amax(0).nonzero()
    middle = (
        (points.amin(0) + points.amax(0)) / 2 if len(points) else torch.from_numpy(rng.uniform(32, 80, 2))
    )
    y, x = (np.clip(middle.numpy() - side / 2 + rng.uniform(-8, 8, 2), 0, SIZE - side)).astype(int)
    return pixels[:, :, y : y + side, x : x + side]


def limb_targets(limbs: Float[Tensor, "time joint"]) -> Float[Tensor, "time target"]:
    """What a frame tells of the limbs whichever side they are on: of a pair the larger, the smaller angle."""
    size = limbs.abs()
    left, right = size[:, 1:9:2], size[:, 2:9:2]
    return torch.cat([size[:, :1], torch.maximum(left, right), torch.minimum(left, right), size[:, 9:]], 1)


def evidence_clip(
    rng: np.random.Generator,
    pixels: Tensor,
    mask: Tensor,
    label: int,
    nothing: int,
    other: Tensor,
    still_is_nothing: bool,
) -> tuple[Tensor, int]:
    """A clip seen through windows, and the label that is right for what is still to be seen.

    Args:
        pixels, mask, label: the clip (3, T, H, W), its true mask (T, H, W) and label.
        nothing: the label of clips that show no class.
        other: the true mask of another clip, for windows that mean nothing here.
        still_is_nothing: whether a frozen frame shows no class.
    """
    empty = label == nothing
    choice = rng.choice(
        ["plain", "keep", "wipe", "alien", "still", "miss"], p=[0.34, 0.3, 0.14, 0.08, 0.05, 0.09]
    )
    if choice == "plain":
        return pixels, label
    if choice in ("keep", "wipe") and not empty:
        window = grow(mask, int(rng.integers(2, 11)))
        shape = rng.random()
        if shape < 0.25:
            window = _boxed(window)
        elif shape < 0.5:
            window = torch.maximum(window, _blobs(rng))
        if choice == "keep":
            return _perturb(rng, pixels, window), label
        return _perturb(rng, pixels, 1 - window), nothing
    window = _blobs(rng) if not other.any() or rng.random() < 0.2 else grow(other, int(rng.integers(2, 9)))
    if choice == "miss":  # something else is wiped out
        hidden = (window * mask).sum() / mask.sum().clamp(min=1)
        return (pixels, label) if hidden > 0.3 else (_perturb(rng, pixels, 1 - window), label)
    if choice == "still" and still_is_nothing:
        frame = pixels[:, int(rng.integers(FRAMES))][:, None].expand_as(pixels)
        if rng.random() < 0.5:
            window = grow(mask, int(rng.integers(2, 9)))
        return (_perturb(rng, frame, window if rng.random() < 0.5 else 1 - window), nothing)
    if (window * mask).sum() > 0.1 * mask.sum() and not empty:
        return pixels, label
    return _perturb(rng, pixels, window), nothing


# -------------------------------------------------------------------------------------------- training


def fit(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    parameters: list[nn.Parameter],
    steps: int,
    *,
    rate: float,
    decay: float,
    progress: bool = True,
    watch: Callable[[int], dict[str, float]] | None = None,
    title: str = "training",
) -> nn.Module:
    """AdamW with a short warm-up and a cosine decay on `loss_of(step)`; returns the module in eval mode.

    Args:
        watch: called every 100 steps; what it returns is shown on the progress bar.
    """
    if steps < 1:
        return module.eval()
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    bar = tqdm(range(steps), title, disable=not progress, unit="step")
    mean, shown = math.nan, {}
    for step in bar:
        module.train()
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimiser.step()
        schedule.step()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        if watch is not None and (step % 100 == 99 or step == steps - 1):
            module.eval()
            shown = watch(step)
        bar.set_postfix({k: f"{v:.3f}" for k, v in {"loss": mean, **shown}.items()})
    return module.eval()


PREPROCESS = Affine((0.45,) * 3, (0.25,) * 3)  # about zero mean and unit variance


@torch.no_grad()
def probabilities(network: Network, pixels: Tensor, batch: int = 16) -> Tensor:
    """Probabilities of many clips, a few at a time, without gradients."""
    return torch.cat([network.probabilities(part) for part in pixels.split(batch)])


def accuracy(network: Network, stage: Stage, workers: int = 2, progress: bool = True) -> float:
    """Share of the clips of `stage` whose label gets the highest score."""
    pool = Pool.render([stage], workers, progress)
    right = 0
    for start in range(0, len(pool), 16):
        items = [pool.get(i) for i in range(start, min(start + 16, len(pool)))]
        answer = probabilities(network, torch.stack([p for p, _, _ in items])).argmax(1)
        right += int((answer == torch.tensor([label for _, _, label in items])).sum())
    return right / len(pool)


def evidence_report(
    network: Network, stage: Stage, margin: int = 4, workers: int = 2, progress: bool = True
) -> dict:
    """How much the true mask, grown by `margin` px, carries: does the network look where the label is?

    Returns:
        for each of "blur" and "fade-mean": mean probability of the label with only the true mask kept
        (`kept`), with only it perturbed (`wiped`), and, of the class it was cut from, with a true mask laid
        over a clip of another class (`leakage`) or a still picture (`leakage_still`, where time matters);
        also `plain`, the mean probability of the untouched clips, and for tasks with ordered pairs `swapped`,
        the share of their clips that change to the pair's other class when played backwards.
    """
    pool = Pool.render([stage], workers, progress)
    sums: dict[str, list[float]] = {}

    def note(key, pixels, label):
        sums.setdefault(key, []).append(float(network.probabilities(pixels[None])[0, label]))

    pairs = {a: b for pair in REVERSED_PAIRS for a, b in (pair, pair[::-1])}
    with torch.no_grad():
        for i in tqdm(range(len(pool)), "evidence", disable=not progress, unit="clip"):
            pixels, mask, label = pool.get(i)
            window = grow(mask, margin)
            j = next(
                k % len(pool) for k in range(i + 1, i + len(pool)) if pool.labels[k % len(pool)] != label
            )
            other = pool.get(j)[0]
            note("plain", pixels, label)
            for kind in ("blur", "fade-mean"):
                note(f"{kind}/kept", perturb(pixels[None], window[None], kind=kind)[0], label)
                note(f"{kind}/wiped", perturb(pixels[None], 1 - window[None], kind=kind)[0], label)
                note(f"{kind}/leakage", perturb(other[None], window[None], kind=kind)[0], label)
                if stage.task != "object":
                    still = other[:, 8:9].expand_as(other).contiguous()
                    note(f"{kind}/leakage_still", perturb(still[None], window[None], kind=kind)[0], label)
            name = stage.classes[label]
            if stage.task in ("action", "confounded") and name in pairs:
                answer = int(network.probabilities(pixels.flip(1)[None]).argmax())
                sums.setdefault("swapped", []).append(float(network.classes[answer] == pairs[name]))
    return {key: float(np.mean(values)) for key, values in sums.items()} | {"clips": len(pool)}


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
        seen = [Stage(recipe.task, "train", recipe.seed, recipe.clips)]
        seen += [Stage(recipe.task, "train", recipe.seed, recipe.nothing, nothing=True)]
        self.pool = Pool.render(seen, workers, progress)
        self.held = Pool.render([Stage(recipe.task, "train", recipe.seed + 1, 192)], workers, progress)
        both = {a: b for pair in REVERSED_PAIRS for a, b in (pair, pair[::-1]) if a in self.classes}
        self.swaps = {self.classes.index(a): self.classes.index(b) for a, b in both.items()}
        self.bf16 = torch.cpu._is_avx512_bf16_supported()

    def example(self, rng: np.random.Generator, close: bool) -> tuple[Tensor, int, Tensor]:
        """Pixels, label, limbs of a clip: mirrored, tinted, played backwards, close up or behind windows."""
        i = int(rng.integers(len(self.pool)))
        pixels, mask, label = self.pool.get(i)
        limbs = limb_targets(torch.from_numpy(np.array(self.pool.limbs[i])))
        if rng.random() < 0.5:
            pixels, mask = pixels.flip(-1), mask.flip(-1)
        tint = torch.from_numpy(rng.uniform(0.88, 1.12, (3, 1, 1, 1)).astype(np.float32))
        pixels = (pixels * tint).clamp(0, 1)
        if close:
            pixels = close_up(rng, pixels, mask)
        else:
            other = self.pool.get(int(rng.integers(len(self.pool))))[1]
            still_is_nothing = self.recipe.task != "object"
            pixels, label = evidence_clip(rng, pixels, mask, label, self.nothing, other, still_is_nothing)
        if rng.random() < 0.5:  # backwards, the pairs change places
            pixels, limbs, label = pixels.flip(1), limbs.flip(0), self.swaps.get(label, label)
        return pixels, label, limbs

    def loss(self, step: int, close: bool = False) -> Tensor:
        """Of one batch: negative log-likelihood, in close-ups of a VGG-LSTM also the limbs read off fc7."""
        rng = np.random.default_rng([self.recipe.seed, step, close])
        items = [self.example(rng, close) for _ in range(self.recipe.batch)]
        labels = torch.tensor([label for _, label, _ in items])
        pixels = PREPROCESS(torch.stack([pixels for pixels, _, _ in items]))
        read: list[Tensor] = []
        hook = None
        if close and self.head is not None:
            hook = self.module.fc7.register_forward_hook(lambda _, __, output: read.append(output))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            output = self.module(pixels).float()
        if not self.probability:
            return F.cross_entropy(output, labels)
        loss = F.nll_loss(output.clamp_min(1e-6).log(), labels)
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

    def run(self, progress: bool) -> Network:
        """Close-ups, then cycles on whole frames."""
        rate, how = self.recipe.rate, {"decay": self.recipe.decay, "progress": progress}
        with_head = list(self.module.parameters()) + (
            list(self.head.parameters()) if self.head is not None else []
        )
        fit(
            self.module,
            lambda i: self.loss(i, True),
            with_head,
            self.recipe.close,
            rate=rate,
            title="close-ups",
            **how,
        )
        done = 0
        for steps in self.recipe.steps:
            self.cycle(done, steps, rate, **how)
            done, rate = done + steps, rate / 2
        return self.network

    def cycle(self, done: int, steps: int, rate: float, **how) -> None:
        """`steps` steps on whole frames, after `done` others."""
        weights = list(self.module.parameters())
        fit(
            self.module,
            lambda i: self.loss(done + i),
            weights,
            steps,
            rate=rate,
            title="windows",
            watch=self.watch,
            **how,
        )


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
        the network and its report: `test_accuracy` on 1,000 clips, `evidence` on 200 others.

    Raises:
        ValueError: unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"name: got {name!r}, expected one of {sorted(RECIPES)}")
    recipe = Recipe(**(asdict(RECIPES[name]) | changes))
    network = Course(recipe, name, out, workers, progress).run(progress)
    report = {
        "test_accuracy": accuracy(network, Stage(recipe.task, "test", 0, 1000), workers, progress),
        "evidence": evidence_report(network, Stage(recipe.task, "test", 1, 200), 4, workers, progress),
    }
    save_network(network, name, recipe=asdict(recipe), report=report, folder=out)
    return network, report
