"""The command line: explain a video, run the notebooks, look a data set through, train on it.

steplab explain holiday.mp4
steplab tables --set preset=smoke
steplab data check ucf101
steplab train --dataset ucf101-24 --root ucf101 --network r2plus1d_18 --init kinetics400
"""

import argparse
import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from . import __version__

# What bad input, missing files, extras and connections raise; anything else is our own fault
# and shows its traceback.
_EXPECTED = (ValueError, OSError, ImportError)

# The lessons that rerun the paper's experiments on its own data; EPIC-Action has no boxes to point at.
_LESSONS = {"epic-action": ["05", "07"]} | dict.fromkeys(("ucf101-24", "epic-object"), ["04", "05", "06"])

# Networks that see all of a frame, squeezed to a square; the others cut out its centre.
_WHOLE_FRAME = ("imagenet-consensus",)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0: done, 1: a notebook failed or data are faulty, 2: bad input, 130: Ctrl-C."""
    parser = _parser()
    options, options.more = parser.parse_known_args(arguments, argparse.Namespace(more=()))
    if options.more and options.run is not _lab:
        parser.error(f"unrecognized arguments: {' '.join(options.more)}")
    warnings.showwarning = lambda message, *_, **__: print(f"steplab: warning: {message}", file=sys.stderr)
    _keep_memory()
    try:
        return options.run(options)
    except _EXPECTED as error:
        words = " ".join(str(error).split()) or type(error).__name__
        print(f"steplab: {words}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steplab: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """One whose help ends in what is only worked out when somebody asks for it."""

    more: Callable[[], str] = staticmethod(str)

    def format_help(self) -> str:
        return super().format_help() + self.more()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="steplab", description="Explain video networks by perturbation.")
    parser.add_argument("--version", action="version", version=f"steplab {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)

    lab = commands.add_parser("lab", help="open JupyterLab; what follows is for it (notebooks, --port ...)")
    lab.set_defaults(run=_lab)

    explain = commands.add_parser(
        "explain",
        help="explain what a network sees in a video",
        description="Print the five likeliest labels, explain one, write an overlay video, a filmstrip and "
        "the explanation itself.",
    )
    explain.add_argument("video", help="a video file (mp4, avi, webm, mkv, gif ...)")
    explain.add_argument(
        "--network",
        default="imagenet-consensus",
        help="name, file or my_module:function, whose code is run (default: %(default)s)",
    )
    explain.add_argument("--target", help="label to explain, a name or a number (default: the likeliest)")
    explain.add_argument("--method", default="step", help="default: %(default)s")
    explain.add_argument(
        "--ratios",
        type=_ratios,
        default=(0.05, 0.1, 0.2),
        help="parts to keep, tried upwards until one is enough (default: 0.05,0.1,0.2)",
    )
    explain.add_argument("--all-ratios", action="store_true", help="go on with those above it")
    explain.add_argument("--preset", default="lesson", help="smoke, lesson (default), paper or released")
    explain.add_argument("--variant", default="preserve", help="preserve (default), delete or dual")
    explain.add_argument("--against", help="another label: why the first and not this one")
    explain.add_argument("--perturbation", help="blur, pyramid, fade-mean, fade-black or fade-grey")
    explain.add_argument(
        "--frames", type=int, help="frames to sample (default: what the network wants, or 8)"
    )
    explain.add_argument(
        "--fit", choices=("crop", "stretch"), help="cut out a square, or squeeze all of the frame into one"
    )
    explain.add_argument("--start", type=float, help="where to begin, seconds")
    explain.add_argument("--stop", type=float, help="where to end, seconds")
    explain.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    explain.add_argument("--device", help="cpu, cuda ... (default: the engine's choice)")
    explain.add_argument("--out", type=Path, help="folder to write to (default: runs/NAME_OF_VIDEO)")
    explain.set_defaults(run=_explain)

    tables = commands.add_parser("tables", help="run the notebooks into a folder with an index.html")
    tables.add_argument("notebooks", nargs="*", help="names or numbers, such as 00_start_here (default: all)")
    tables.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="a parameter (see below) for those of the notebooks that have it",
    )
    tables.add_argument(
        "--dataset",
        choices=tuple(_LESSONS),
        help="the paper's experiment on this data set (by default the lessons 04 to 07 that it fits)",
    )
    tables.add_argument("--root", type=Path, help="where that data set lies")
    tables.add_argument("--out", type=Path, default=Path("runs"), help="default: %(default)s")
    tables.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default: %(default)s)")
    tables.set_defaults(run=_tables)
    tables.more = _parameters

    data = commands.add_parser("data", help="look a data set of real videos through")
    check = data.add_subparsers(title="commands", required=True).add_parser(
        "check", help="read all of it; list what is missing, short, corrupt or without annotations"
    )
    check.add_argument("root", type=Path, help="UCF101-24, EPIC-Kitchens-55, or folders of videos by label")
    check.add_argument(
        "--dataset",
        default="",
        help="ucf101-24, epic-object, epic-action or folders (default: as the annotations there tell)",
    )
    check.add_argument("--jobs", type=int, default=0, help="processes that help to read (default: none)")
    check.set_defaults(run=_check_data)

    train = commands.add_parser(
        "train",
        help="train a network on a data set of real videos",
        description="Train, print a line an epoch, write checkpoint, log, network and plot. The same command "
        "again goes on where it was. On several GPUs: torchrun --nproc-per-node N -m steplab train ...",
    )
    train.add_argument("--dataset", required=True, help="ucf101-24, epic-object, epic-action or folders")
    train.add_argument("--root", type=Path, required=True, help="where it lies")
    train.add_argument(
        "--network",
        default="r2plus1d_18",
        help="r2plus1d_18, vgg16lstm, narrow-r2plus1d or narrow-vgg16lstm (default: %(default)s)",
    )
    train.add_argument(
        "--init", default="none", help="kinetics400, imagenet, a saved network or none (default: %(default)s)"
    )
    train.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    train.add_argument(
        "--batch", type=int, default=16, help="clips in a step, on all GPUs (default: %(default)s)"
    )
    train.add_argument("--optimiser", default="adamw", help="adamw or sgd (default: %(default)s)")
    train.add_argument("--rate", type=float, help="highest learning rate (default: 3e-4, 1e-2 for sgd)")
    train.add_argument("--decay", type=float, default=0.01, help="weight decay (default: %(default)s)")
    train.add_argument("--size", type=int, help="px of the clips read (default: the network's own)")
    train.add_argument(
        "--precision", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)"
    )
    train.add_argument("--no-mirror", dest="mirror", action="store_false", help="show no clip mirrored")
    train.add_argument(
        "--block-states",
        action=argparse.BooleanOptionalAction,
        help="let no gradient cross the steps of an LSTM (default: vgg16lstm, as in the paper)",
    )
    train.add_argument(
        "--average",
        default="probabilities",
        help="of an LSTM's steps: probabilities, as in the paper, or losses (default: %(default)s)",
    )
    train.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    train.add_argument("--device", help="cpu, cuda ... (default: a GPU if there is one)")
    train.add_argument("--workers", type=int, default=0, help="processes that read videos (default: none)")
    train.add_argument("--cache", type=Path, help="folder for decoded clips, which saves decoding them again")
    train.add_argument("--out", type=Path, help="default: runs/DATASET-NETWORK")
    train.set_defaults(run=_train)

    return parser


def _ratios(text: str) -> tuple[float, ...]:
    try:
        ratios = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        ratios = ()
    if not ratios or not all(0 < r < 1 for r in ratios):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers between 0 and 1, such as 0.05,0.1")
    return ratios


def _setting(text: str) -> tuple[str, object]:
    from .tables import parse_value

    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE, such as seed=3")
    return name, parse_value(value)


def _explain(options) -> int:
    from .clips import read_clip
    from .config import METHODS, make_config
    from .explain import Explanation, explain
    from .networks import load_network

    _check_device(options.device)
    changes = {"variant": options.variant, "against": options.against, "perturbation": options.perturbation}
    changes = {k: v for k, v in changes.items() if v not in (None, "preserve")}
    make_config(options.method, options.preset, (16, 112, 112), changes)  # misspelt? before anything is read
    network = load_network(options.network)
    frames = (network.frames or 8) if options.frames is None else options.frames
    fit = options.fit or ("stretch" if network.name in _WHOLE_FRAME else "crop")
    part = {"start": options.start, "stop": options.stop}
    clip = read_clip(options.video, frames, network.size or 112, fit=fit, **part)
    target = _label(network, clip, options.target)
    if (
        (large := min(clip.pixels.shape[2:])) > 112
        and options.preset == "lesson"
        and options.method in METHODS
    ):
        changes |= {"step": round(7 * large / 112), "iterations": 24, "shrink": 12}  # a minute, not ten
    out = options.out or Path("runs") / Path(options.video).stem
    out.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after

    result = explain(
        network,
        clip,
        target,
        method=options.method,
        ratios=sorted(options.ratios),
        preset=options.preset,
        seed=options.seed,
        device=options.device,
        until_enough=not options.all_ratios,
        **changes,
    )
    assert isinstance(result, Explanation)  # one clip, one explanation
    if result.interrupted:
        print("Interrupted: what follows is the best so far.")
    print("Removed probability" if options.variant == "delete" else "Kept    probability")
    rows = zip(result.enough, result.ratios, result.probability, result.converged, strict=True)
    for enough, ratio, probability, final in sorted(rows, key=lambda row: not row[0]):  # the enough one first
        words = "" if enough else "  not enough"
        print(f"{ratio:6.1%}  {float(probability):.3f}{words}{'' if final else '  (not settled)'}")
    for remark in result.remarks():
        print(remark)
    name = Path(options.video).stem
    written = [
        out / f"{name}.overlay.mp4",
        out / f"{name}.filmstrip.png",
        out / f"{name}.explanation.safetensors",
    ]
    result.to_video(written[0])
    result.filmstrip(written[1])
    result.save(written[2])
    for path in written:
        print(f"wrote {path}")
    return 0


def _check_device(name: str | None):
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: got {name!r}: {str(error).splitlines()[0]}") from error


def _label(network, clip, wanted: str | None) -> int:
    """Print the likeliest labels; the index of the one to explain."""
    import torch

    with torch.no_grad():
        probabilities = network.probabilities(clip.pixels[None])[0]
    best = probabilities.topk(min(5, len(network.classes)))
    print(f"{network.name} on {clip.source}:")
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"{probability:8.3f}  {network.classes[index]}")
    if wanted is None:
        target = int(best.indices[0])
    elif wanted in network.classes or not wanted.lstrip("-").isdigit():
        target = network.index(wanted)
    else:
        target = network.index(int(wanted))
    print(f"Explaining {network.classes[target]!r} ({probabilities[target]:.3f})", flush=True)
    return target


def _tables(options) -> int:
    from .tables import run_tables

    names, given = options.notebooks, dict(options.set)
    if (options.dataset is None) != (options.root is None):
        raise ValueError(f"dataset, root: got {options.dataset} and {options.root}, expected both or neither")
    if options.dataset:
        names, given = (
            names or _LESSONS[options.dataset],
            given | {"clips": f"{options.dataset}:{options.root}"},
        )
    runs = run_tables(names, given, options.out, options.jobs)
    print(f"wrote {options.out / 'index.html'}")
    failed = [f"{run.name}: {run.error}" for run in runs if run.error]
    if failed:
        print(f"steplab: {len(failed)} of {len(runs)} failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _train(options) -> int:
    from dataclasses import fields

    from .finetune import Recipe, finetune

    recipe = Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe)})
    _check_device(options.device)
    out = options.out or Path("runs") / f"{recipe.dataset}-{recipe.network}"
    how = {"cache": options.cache, "workers": options.workers, "device": options.device}
    network = finetune(recipe, options.root, out, **how)
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {out / network.name}.safetensors")
    return 0


def _lab(options) -> int:
    hook = "--FileContentsManager.pre_save_hook=steplab.saving.keep_pictures"
    return subprocess.run([sys.executable, "-m", "jupyterlab", hook, *options.more]).returncode


def _check_data(options) -> int:
    from .datasets import check

    clips, faults = check(options.root, options.dataset, options.jobs)
    if faults:
        print(f"{'what':12} {'clips':>6}  where: why")
    for fault in faults:
        print(f"{fault.kind:12} {fault.clips:6}  {fault.path}: {fault.why}")
    print(f"{clips} clips looked for in {options.root}, {len(faults)} faults")
    return int(bool(faults))


def _parameters() -> str:
    from .tables import TableError, list_parameters

    try:
        return f"\n{list_parameters()}\n"
    except TableError as error:
        return f"\n{error}\n"


def _keep_memory():
    """Ask the GNU allocator to keep large blocks instead of returning them to the system at every iteration.

    On other systems, whose allocators do not need it, this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


if __name__ == "__main__":
    sys.exit(main())
