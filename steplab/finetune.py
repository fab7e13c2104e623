"""Train a network on real videos: full-size or narrow, from weights others trained or from nothing.

>>> recipe = Recipe("ucf101-24", "r2plus1d_18", init="kinetics400", epochs=10)
>>> finetune(recipe, "path/to/ucf101", "runs/ucf101")           # again after a stop: it goes on where it was
>>> load_network("runs/ucf101/ucf101-24-r2plus1d_18")

On several GPUs: `torchrun --nproc-per-node 8 -m steplab train ...`.
"""

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from . import figures
from .clips import Record
from .datasets import DATASETS, open_dataset
from .files import write_whole
from .names import pick
from .narrow import NarrowR2Plus1D, NarrowVGG16LSTM
from .networks import Affine, Network, load_network, save_network
from .pretrained import fetch
from .r2plus1d import R2Plus1D18
from .vgg_lstm import VGG16LSTM, VGGLSTM

_COURSE = Affine((0.45,) * 3, (0.25,) * 3)


@dataclass(frozen=True)
class _Family:
    build: Any  # classes → module
    size: int  # of its frames, px
    preprocess: Affine
    head: tuple[str, ...]  # the parts that always begin from nothing
    init: str = ""  # weights of torchvision that it can begin with


NETWORKS = {
    "r2plus1d_18": _Family(
        R2Plus1D18,
        112,
        Affine((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
        ("net.fc.",),
        "kinetics400",
    ),
    "vgg16lstm": _Family(
        VGG16LSTM,
        224,
        Affine((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224),
        ("lstm.", "fc8."),
        "imagenet",
    ),
    "narrow-r2plus1d": _Family(NarrowR2Plus1D, 112, _COURSE, ("fc.",)),
    "narrow-vgg16lstm": _Family(NarrowVGG16LSTM, 112, _COURSE, ("fc8.",)),
}
_RATES = {"adamw": 3e-4, "sgd": 1e-2}
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run, but for the videos.

    Attributes:
        dataset: a name in `datasets.DATASETS`; of "folders" the root must hold train/ and test/ (or val/).
        network: "r2plus1d_18", "vgg16lstm", "narrow-r2plus1d" or "narrow-vgg16lstm".
        init: weights to begin with: "none", "kinetics400" (r2plus1d_18), "imagenet" (vgg16lstm, without its
            LSTM), or a saved network of the same kind. The last layer always begins from nothing, and learns
            ten times as fast as weights that were trained before.
        epochs, batch: passes over the training clips, clips in a step (over all GPUs).
        optimiser, rate, decay: "adamw" or "sgd" (Nesterov momentum .9); highest learning rate, None for 3e-4
            or 1e-2; weight decay. The rate rises for a tenth of the steps and falls as a cosine.
        mirror: show half of the clips mirrored.
        block_states: of the LSTM, let no gradient cross time steps, as the paper does (`VGGLSTM`); None: as
            is usual for the network.
        average: of an LSTM's steps, as the paper does, "probabilities" (the loss is that of their mean), or
            "losses" (each step must answer). The answer is the mean probability either way.
        size: px of the clips read; None for the network's own. `vgg16lstm` enlarges smaller ones to 224.
        precision: "auto" (bfloat16 or float16 on a GPU, float32 on a CPU) or one of the three.
        seed: of weights, order, frames, mirrors and dropout.

    Raises:
        ValueError: a value that is unknown or too small, or weights that do not fit the network.
    """

    dataset: str
    network: str = "r2plus1d_18"
    init: str = "none"
    epochs: int = 20
    batch: int = 16
    optimiser: str = "adamw"
    rate: float | None = None
    decay: float = 0.01
    mirror: bool = True
    block_states: bool | None = None
    average: str = "probabilities"
    size: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        choices = {"dataset": DATASETS, "network": NETWORKS, "optimiser": _RATES}
        choices |= {"average": ("probabilities", "losses"), "precision": ("auto", *_PRECISIONS)}
        for name, known in choices.items():
            pick(name, getattr(self, name), known)
        for name in ("epochs", "batch", "size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate: got {self.rate}, expected more than 0")
        theirs, taken = {f.init for f in NETWORKS.values() if f.init}, NETWORKS[self.network].init
        if self.init in theirs and self.init != taken:
            others = f"{taken}, none" if taken else "none"
            raise ValueError(f"init: got {self.init!r} for {self.network}, expected {others} or a saved one")


def finetune(
    recipe: Recipe,
    root: str | Path,
    out: str | Path,
    *,
    cache: str | Path | None = None,
    workers: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Network:
    """Train, and measure after each epoch on the test split; what is in `out` already is not done again.

    Writes `checkpoint.pt` and `log.csv` after each epoch, and at last `<dataset>-<network>.safetensors` with
    its JSON (`load_network`) and `training.png`. On a CPU a run that was killed ends in the same weights, bit
    for bit, as one that was not. Under `torchrun` each process takes its share of every batch; the first one
    writes.

    Args:
        root: folder of the data set, as for `open_dataset`. Videos that are not there are left out.
        out: folder to write to, one for each run.
        cache: folder for decoded clips, as for `Videos`.
        workers: processes that read videos beside this one.
        device: such as "cuda:1"; None: a GPU if there is one.

    Returns:
        the network, in evaluation mode on the CPU.

    Raises:
        ValueError: as `Recipe` and `open_dataset`; the same videos for training and testing; fewer clips in a
            batch than processes; a checkpoint of another recipe, or a damaged one.
        ConnectionError: torchvision cannot download the weights.

    Warns:
        UserWarning: videos are missing.
    """
    out = Path(out)
    with _together(device) as (place, rank, world):
        devices = [place] if place.type == "cuda" else []
        with torch.random.fork_rng(devices):
            run = _Run(recipe, root, out, cache, workers, place, rank, world)
            for epoch in range(len(run.log), recipe.epochs):
                run.log.append(run.epoch(epoch, progress and rank == 0))
                if rank == 0:
                    run.keep()
                    if progress:
                        print("  ".join(f"{k} {v:.4g}" for k, v in run.log[-1].items()), flush=True)
            if rank == 0:
                run.save()
    run.core.cpu().eval()
    return run.network


@contextmanager
def _together(device: str | None) -> Iterator[tuple[torch.device, int, int]]:
    """Device, rank and number of the processes that `torchrun` started; alone without it."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if world == 1:
        yield torch.device(name), 0, 1
        return
    place = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', rank)}" if name == "cuda" else name)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield place, rank, world
    finally:
        dist.destroy_process_group()


class _Loss(nn.Module):
    """Loss of a batch, and how many answers are right: one forward, so that gradients can be gathered."""

    def __init__(self, core: nn.Module, average: str):
        super().__init__()
        self.core, self.average = core, average

    def forward(
        self, x: Float[Tensor, "batch 3 time height width"], labels: Int64[Tensor, " batch"]
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(self.core, VGGLSTM):
            scores = self.core(x).float()
            return F.cross_entropy(scores, labels), (scores.argmax(1) == labels).sum()
        steps = self.core.step_logits(x).float()
        mean = steps.softmax(-1).mean(1)
        if self.average == "losses":
            loss = F.cross_entropy(steps.flatten(0, 1), labels.repeat_interleave(steps.shape[1]))
        else:
            loss = F.nll_loss(mean.clamp_min(1e-6).log(), labels)
        return loss, (mean.argmax(1) == labels).sum()


class _Run:
    """One training run: its data, its network, how far it is."""

    def __init__(
        self,
        recipe: Recipe,
        root: str | Path,
        out: Path,
        cache: str | Path | None,
        workers: int,
        device: torch.device,
        rank: int,
        world: int,
    ):
        self.recipe, self.out, self.workers, self.device, self.rank, self.world = (
            recipe, out, workers, device, rank, world,
        )  # fmt: skip
        family = NETWORKS[recipe.network]
        look: dict[str, Any] = {"size": recipe.size or family.size, "seed": recipe.seed, "cache": cache}
        self.train, self.test = (
            open_dataset(recipe.dataset, root, split, **look).there() for split in ("train", "test")
        )
        if both := {i.name for i in self.train.items} & {i.name for i in self.test.items}:
            raise ValueError(
                f"root: {min(both)} is for training and for testing; expected train/ and test/ (or val/)"
            )
        torch.manual_seed(recipe.seed)
        self.core = family.build(len(self.train.classes))
        if recipe.block_states is not None and isinstance(self.core, VGGLSTM):
            self.core.detach_state = recipe.block_states
        self.network = Network(
            self.core,
            self.train.classes,
            family.preprocess,
            "probability" if isinstance(self.core, VGGLSTM) else "logits",
            frames=self.train.frames,
            size=look["size"],
            name=f"{recipe.dataset}-{recipe.network}",
            target_layer=str(self.core.target_layer),
        )
        self.batch = min(recipe.batch, len(self.train))
        if self.batch < world:
            raise ValueError(f"batch: got {self.batch} for {world} processes, expected a clip for each")
        self.steps = len(self.train) // self.batch
        self.log: list[dict[str, float]] = []
        self.facts = json.dumps(
            asdict(recipe) | {"clips": [i.name for i in self.train.items]}, sort_keys=True
        )
        known = self._stored()
        if known is None:
            _begin(self.core, recipe)
        self.core.to(device)
        self._optimiser()
        if known is not None:
            self.core.load_state_dict(known["core"])
            self.optimiser.load_state_dict(known["optimiser"])
            self.schedule.load_state_dict(known["schedule"])
            self.scaler.load_state_dict(known["scaler"])
            self.log = known["log"]
        module = _Loss(self.core, recipe.average)
        self.module = module if world == 1 else DistributedDataParallel(module)

    def _optimiser(self) -> None:
        recipe, head = self.recipe, NETWORKS[self.recipe.network].head
        rate = recipe.rate or _RATES[recipe.optimiser]
        new = [p for n, p in self.core.named_parameters() if n.startswith(head)]
        old = [p for n, p in self.core.named_parameters() if not n.startswith(head)]
        rates = [rate * (1 if recipe.init == "none" else 10), rate]
        groups: Any = [{"params": p, "lr": r} for p, r in zip((new, old), rates, strict=True)]
        if recipe.optimiser == "sgd":
            self.optimiser: torch.optim.Optimizer = torch.optim.SGD(
                groups, momentum=0.9, nesterov=True, weight_decay=recipe.decay
            )
        else:
            self.optimiser = torch.optim.AdamW(groups, weight_decay=recipe.decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, rates, total_steps=recipe.epochs * self.steps, pct_start=0.1, cycle_momentum=False
        )
        half = "bfloat16" if self.device.type != "cuda" or torch.cuda.is_bf16_supported() else "float16"
        auto = half if self.device.type == "cuda" else "float32"
        self.precision = _PRECISIONS[auto if recipe.precision == "auto" else recipe.precision]
        scaled = self.precision is torch.float16 and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def epoch(self, number: int, progress: bool) -> dict[str, float]:
        """One pass over training and test clips; all that is random comes from `number`."""
        started, recipe = time.perf_counter(), self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + number * self.world + self.rank + 1)  # dropout
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        self.train.seed = recipe.seed * 1_000_003 + number
        order = torch.randperm(len(self.train), generator=rng)[: self.steps * self.batch]
        flips = torch.rand(len(order), generator=rng) < 0.5 * recipe.mirror
        mine = [b[self.rank :: self.world] for b in torch.arange(len(order)).split(self.batch)]
        batches = self._loader(self.train, batch_sampler=[order[b].tolist() for b in mine])
        bar = tqdm(batches, f"epoch {number + 1} of {recipe.epochs}", disable=not progress, leave=False)
        self.module.train()
        sums = torch.zeros(3, dtype=torch.float64)
        for places, (pixels, labels) in zip(mine, bar, strict=True):
            pixels = torch.where(flips[places].view(-1, 1, 1, 1, 1), pixels.flip(-1), pixels)
            x, labels = self.network.preprocess(pixels.to(self.device)), labels.to(self.device)  # type: ignore[misc]
            with torch.autocast(self.device.type, self.precision, self.precision is not torch.float32):
                loss, right = self.module(x, labels)
            self.optimiser.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.core.parameters(), 2.0)
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.schedule.step()
            sums += torch.tensor([loss.item() * len(places), right.item(), len(places)])
            bar.set_postfix(loss=f"{loss.item():.3f}")
        loss, right, seen = self._gather(sums).tolist()
        first, five, tests = self._gather(self._hits()).tolist()
        found = {"epoch": number + 1, "loss": loss / seen, "train top-1": right / seen}
        found |= {"test top-1": first / tests, "test top-5": five / tests}
        return found | {"rate": self.schedule.get_last_lr()[1], "seconds": time.perf_counter() - started}

    @torch.no_grad()
    def _hits(self) -> Tensor:
        """Test clips whose label is the first, or among the first five answers; how many there are."""
        self.module.eval()
        for buffer in self.core.buffers() if self.world > 1 else ():
            dist.broadcast(buffer, 0)  # means and variances of batch norm, as they will be saved
        share = Subset(self.test, range(self.rank, len(self.test), self.world))
        sums = torch.zeros(3, dtype=torch.float64)
        for pixels, labels in self._loader(share, batch_size=self.batch):
            with torch.autocast(self.device.type, self.precision, self.precision is not torch.float32):
                scores = self.network(pixels.to(self.device)).float().cpu()
            place = (scores > scores.gather(1, labels[:, None])).sum(1)
            sums += torch.tensor([(place < 1).sum(), (place < 5).sum(), len(place)])
        return sums

    def _loader(self, data: Any, **how: Any) -> DataLoader:
        context = "spawn" if self.workers else None  # a fork would inherit torch's threads
        return DataLoader(
            data, num_workers=self.workers, collate_fn=_batch, multiprocessing_context=context, **how
        )

    def _gather(self, sums: Tensor) -> Tensor:
        if self.world > 1:
            sums = sums.to(self.device)
            dist.all_reduce(sums)
        return sums.cpu()

    def _stored(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            known = torch.load(path, map_location="cpu", weights_only=True)
            before, now = json.loads(known["facts"]), json.loads(self.facts)
        except Exception as error:  # damaged files raise nearly anything
            raise ValueError(f"out: {path} is no checkpoint ({error}); expected one, or none") from error
        for name, value in now.items():
            if before.get(name) != value:
                told = "other clips" if name == "clips" else f"{name} = {before.get(name)!r}, now {value!r}"
                raise ValueError(
                    f"out: {self.out} holds a run with {told}; expected the same, or another folder"
                )
        return known

    def keep(self) -> None:
        """Write how far it is: the checkpoint, then the log."""
        state = {
            name: getattr(self, name).state_dict() for name in ("core", "optimiser", "schedule", "scaler")
        }
        file = io.BytesIO()
        torch.save({**state, "facts": self.facts, "log": self.log}, file)
        write_whole(self.out / "checkpoint.pt", file.getvalue())
        write_whole(self.out / "log.csv", pd.DataFrame(self.log).to_csv(index=False).encode())

    def save(self) -> None:
        """Write the network and a plot of its training."""
        last = {k: v for k, v in self.log[-1].items() if k.startswith("test")}
        report = {**last, "clips": len(self.test), "trained on": len(self.train)}
        save_network(
            self.network, self.network.name, recipe=asdict(self.recipe), report=report, folder=self.out
        )
        log = pd.DataFrame(self.log)
        lines = {name: log[name].to_numpy() for name in ("train top-1", "test top-1", "test top-5")}
        words: dict[str, Any] = {
            "xlabel": "epoch",
            "ylabel": "share that is right",
            "title": self.network.name,
        }
        figures.curves(log["epoch"].tolist(), lines, **words).savefig(self.out / "training.png", dpi=120)


def _batch(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Pixels and labels of some records."""
    return torch.stack([r.clip.pixels for r in records]), torch.tensor([r.label for r in records])


def _begin(core: nn.Module, recipe: Recipe) -> None:
    """Put the weights to begin with into the network."""
    if recipe.init == "none":
        return
    family, own = NETWORKS[recipe.network], core.state_dict()
    if recipe.init == "kinetics400":
        from torchvision.models.video import R2Plus1D_18_Weights

        theirs = {f"net.{k}": v for k, v in fetch(R2Plus1D_18_Weights.KINETICS400_V1, recipe.network).items()}
    elif recipe.init == "imagenet":
        from torchvision.models import VGG16_Weights

        names = {"classifier.0.": "fc6.", "classifier.3.": "fc7."}
        theirs = {}
        for key, value in fetch(VGG16_Weights.IMAGENET1K_V1, recipe.network).items():
            old = next((n for n in names if key.startswith(n)), "")
            theirs[names.get(old, "") + key.removeprefix(old)] = value
    else:
        module = load_network(recipe.init).module
        if type(module) is not type(core):
            kind = type(module).__name__
            raise ValueError(f"init: {recipe.init!r} is a {kind}, expected a {type(core).__name__}")
        theirs = module.state_dict()  # type: ignore[union-attr]
    fits = {k: v for k, v in theirs.items() if k in own and not k.startswith(family.head)}
    missing = [k for k in own if k not in fits and not k.startswith(family.head)]
    if missing or any(own[k].shape != v.shape for k, v in fits.items()):
        raise ValueError(f"init: the weights of {recipe.init!r} do not fit {recipe.network}")
    core.load_state_dict(own | fits)
