"""The command line: explain a video, run the notebooks, look a data set through.

steplab explain holiday.mp4
steplab tables --set preset=smoke
steplab data check ucf101
"""

import argparse
import ctypes
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from . import __version__

# What bad input, missing files, extras and connections raise; anything else is our own fault
# and shows its traceback.
_EXPECTED = (ValueError, OSError, ImportError)

# Networks that see all of a frame, squeezed to a square; the others cut out its centre.
_WHOLE_FRAME = ("imagenet-consensus",)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0: done, 1: a notebook failed or data are faulty, 2: bad input, 130: Ctrl-C."""
    options = _parser().parse_args(arguments)
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
        default=(0.02, 0.05, 0.1, 0.2),
        help="parts to keep (default: 0.02,0.05,0.1,0.2)",
    )
    explain.add_argument(
        "--preset", default="lesson", help="smoke, lesson, paper or released (default: lesson)"
    )
    explain.add_argument("--perturbation", help="blur, pyramid, fade-mean, fade-black or fade-grey")
    explain.add_argument(
        "--frames", type=int, help="frames to sample (default: what the network wants, or 16)"
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
    from .config import make_config
    from .explain import Explanation, explain
    from .networks import load_network

    _check_device(options.device)
    changes = {} if options.perturbation is None else {"perturbation": options.perturbation}
    make_config(options.method, options.preset, (16, 112, 112), changes)  # misspelt? before anything is read
    network = load_network(options.network)
    frames = (network.frames or 16) if options.frames is None else options.frames
    fit = options.fit or ("stretch" if network.name in _WHOLE_FRAME else "crop")
    part = {"start": options.start, "stop": options.stop}
    clip = read_clip(options.video, frames, network.size or 112, fit=fit, **part)
    target = _label(network, clip, options.target)
    out = options.out or Path("runs") / Path(options.video).stem
    out.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after

    result = explain(
        network,
        clip,
        target,
        method=options.method,
        ratios=options.ratios,
        preset=options.preset,
        seed=options.seed,
        device=options.device,
        **changes,
    )
    assert isinstance(result, Explanation)  # one clip, one explanation
    if result.interrupted:
        print("Interrupted: what follows is the best so far.")
    print("Kept    probability")
    for ratio, probability, final in zip(result.ratios, result.probability, result.converged, strict=True):
        print(f"{ratio:6.1%}  {float(probability):.3f}{'' if final else '  (not settled)'}")
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

    runs = run_tables(options.notebooks, dict(options.set), options.out, options.jobs)
    print(f"wrote {options.out / 'index.html'}")
    failed = [f"{run.name}: {run.error}" for run in runs if run.error]
    if failed:
        print(f"steplab: {len(failed)} of {len(runs)} failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


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
