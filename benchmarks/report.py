"""Speed, each part beside what it replaces, in one run: `make bench` writes report.md and report.json.

    python benchmarks/report.py [--threads 2] [--rounds 7] [--only iteration many interactive decoding size]

Medians and ratios; a busy machine makes all of them longer, so read the ratios. Sections are written as they
are done, so that a run that is stopped leaves what it had.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from overhead import SIZE, measure, median_ms, parts, torchray_parts
from published import PublishedLoop, check
from torchvision.models.video import r2plus1d_18

import steplab as sl
from steplab.clips import read_clip
from steplab.config import make_config
from steplab.engine import Descent, untouched
from steplab.explain import _bfloat16_pays
from steplab.networks import Network
from steplab.painting import Canvas, encode
from steplab.study import Study

HERE = Path(__file__).resolve().parent


def large_network() -> Network:
    torch.manual_seed(0)
    return Network(r2plus1d_18(weights=None).eval(), [str(k) for k in range(400)], name="r2plus1d_18")


def table(head: str, rows) -> list[str]:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|" + "---|" * columns]
    return [*lines, *("| " + " | ".join(str(value) for value in row) + " |" for row in rows), ""]


def goal(what: str, wanted: str, reached: str, met: bool) -> tuple[str, str, str, str]:
    return what, wanted, reached, "yes" if met else "**no**"


# ------------------------------------------------------------------------------------------------ iteration


def peak_of(part: str, threads: int) -> float:
    """Most memory that a process of its own takes for three iterations, beyond what it took before, MB."""
    command = [sys.executable, __file__, "--peak", part, "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def highest() -> float:
    """The most memory that this process has held, kB; `getrusage` begins with its parent's. Linux only."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def take_peak(part: str) -> None:
    """What the process above does."""
    network, pixels = large_network(), torch.rand(1, 3, *SIZE)
    before = highest()
    if part == "published":
        loop = PublishedLoop(network.log_probabilities, pixels, 0, 0.1)
        with untouched(network):
            for _ in range(3):
                loop.step()
    else:
        sl.explain(network, pixels[0], 0, ratios=(0.1,), preset="smoke", iterations=3, progress=False)
    print((highest() - before) / 1000)


def iteration(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    check()
    network, pixels = large_network(), torch.rand(1, 3, *SIZE)
    best = "bfloat16" if _bfloat16_pays(network, torch.device("cpu")) else "float32"
    with untouched(network):
        loop = PublishedLoop(network.log_probabilities, pixels, 0, 0.1)
        loop.iteration = 100  # L_K is on
        (published,) = median_ms(rounds, loop.step)
    ours = {precision: measure(rounds, precision) for precision in dict.fromkeys(("float32", best))}
    memory = {part: peak_of(part, threads) for part in ("ours", "published")}
    own, theirs = parts(4 * rounds), torchray_parts(rounds) or {}
    rows = [("the published loop, plain, float32", "", f"{published:.0f}", "")]
    for precision, m in ours.items():
        times = f"{published / m['iteration']:.2f}"
        rows.append((f"ours, {precision}", f"{m['network']:.0f}", f"{m['iteration']:.0f}", times))
    lines = table("what | network alone, ms | whole iteration, ms | times faster", rows)
    beside = [
        (
            name,
            f"{ms:.1f}",
            *((f"{theirs[name]:.1f}", f"{theirs[name] / ms:.1f}") if name in theirs else ("", "")),
        )
        for name, ms in own.items()
    ]
    lines += table("part, forward and backward | ours, ms | torchray, ms | times faster", beside)
    lines += [f"Peak memory beyond the loaded network: ours {memory['ours']:.0f} MB, "
              f"the published loop {memory['published']:.0f} MB.", ""]  # fmt: skip
    whole = 1 / (1 - ours[best]["rest"])
    faster, share = published / ours[best]["iteration"], memory["ours"] / memory["published"]
    goals = [
        goal(f"whole iteration over the network alone ({best})", "≤ 1.05", f"{whole:.3f}", whole <= 1.05),
        goal("faster than the published loop", "≥ 2.5 ×", f"{faster:.2f} ×", faster >= 2.5),
        goal("peak memory over the published loop's", "≤ 0.6", f"{share:.2f}", share <= 0.6),
    ]
    return lines, goals, {"published_ms": published, "ours": ours, "memory_MB": memory, "parts_ms": own}


# ----------------------------------------------------------------------------------------------------- many


def many(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    stage, name = sl.Stage("action", split="test", seed=5), "stage-action-vgg16lstm"
    records = [stage[k] for k in range(6)]
    ask = {"preset": "smoke", "iterations": 30, "ratios": (0.1,), "metrics": ("probability",)}

    def grid(folder, *methods):
        return Study(records, [name], [*methods], store=folder, name="bench", **ask)

    spent = {}
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            start = time.perf_counter()
            grid(f"{folder}/{workers}", "step", "ep3d").run(workers=workers, progress=False)
            spent[f"{workers} processes" if workers > 1 else "1 process"] = time.perf_counter() - start
        start = time.perf_counter()
        grid(f"{folder}/2", "step", "ep3d").run(progress=False).table()
        spent["found in the store"] = time.perf_counter() - start
    network = sl.load_network(name)
    clips, labels = [r.clip for r in records], [r.label for r in records]
    torch.set_num_threads(1)
    how = {"method": "step", "ratios": (0.1,), "preset": "smoke", "iterations": 15, "progress": False}
    one, together = median_ms(
        2,
        lambda: sl.explain(network, clips, labels, max_batch=1, **how),
        lambda: sl.explain(network, clips, labels, max_batch=6, **how),
    )
    torch.set_num_threads(threads)
    cells = 2 * len(records)
    rows = [(what, f"{s:.1f}", f"{s / cells * 1000:.0f}") for what, s in spent.items()]
    lines = table(f"{cells} masks of 30 iterations, narrow VGG-LSTM | s | ms a mask", rows)
    batched = f"one after the other {one:.0f} ms, together {together:.0f} ms"
    lines += [f"Six masks at once in one thread: {batched}.", ""]
    gain, share = spent["1 process"] / spent["2 processes"], spent["found in the store"] / spent["1 process"]
    goals = [
        goal("two processes over one (start included)", "≥ 1.8 ×", f"{gain:.2f} ×", gain >= 1.8),
        goal(
            "six narrow masks at once over one by one",
            "≥ 1.5 ×",
            f"{one / together:.2f} ×",
            one / together >= 1.5,
        ),
        goal("store: reading over finding", "< 2 %", f"{share:.1%}", share < 0.02),
    ]
    return lines, goals, {"seconds": spent, "one_by_one_ms": one, "batched_ms": together}


# ---------------------------------------------------------------------------------------------- interactive


def interactive(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    def start_of(statement: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - start

    empty, package, all_of_it = (
        statistics.median(start_of(s) for _ in range(5))
        for s in (
            "pass",
            "import steplab",
            "import steplab as sl, steplab.widgets; sl.explain, sl.load_network",
        )
    )
    record, times = sl.Stage("action", split="test", seed=5)[0], {}
    for family in ("r2plus1d", "vgg16lstm"):
        network, useful = sl.load_network(f"stage-action-{family}"), []

        def seen(state, useful=useful):
            if not useful and float(state.masks[0].mean()) <= 0.15 and float(state.probability[0]) >= 0.5:
                useful.append(time.perf_counter())

        start = time.perf_counter()
        result = sl.explain(network, record.clip, record.label, ratios=(0.1,), callback=seen, progress=False)
        end = time.perf_counter()
        count = int(np.isfinite(result.history["energy"]).sum())
        times[family] = (useful[0] - start if useful else float("nan"), end - start, count)
    canvas = Canvas(record.clip.pixels, 3, true_mask=record.mask, segment=record.segment)
    mask = record.mask.float()
    (frames,) = median_ms(rounds, lambda: [encode(f, "jpeg") for f in canvas.panel(mask)])
    rows = [(f, f"{a:.1f}", f"{b:.1f}", n) for f, (a, b, n) in times.items()]
    lines = table("narrow network, one ratio | first useful mask, s | finished, s | iterations", rows)
    lines += [
        "Useful: at most 15 % of the clip where 10 % were asked for, and p ≥ .5.",
        "",
        f"`import steplab` {package - empty:.2f} s; with explain, networks and widgets "
        f"{all_of_it - empty:.2f} s. Sixteen frames of another mask, drawn and encoded: {frames:.0f} ms.",
        "",
    ]
    first, last = (max(t[k] for t in times.values()) for k in (0, 1))
    goals = [
        goal("first useful mask", "≤ 1.5 s", f"{first:.1f} s", first <= 1.5),
        goal("finished mask", "≤ 5 s", f"{last:.1f} s", last <= 5),
        goal("`import steplab`", "≤ 2.5 s", f"{package - empty:.2f} s", package - empty <= 2.5),
        goal("frames of another mask, ready to be sent", "< 100 ms", f"{frames:.0f} ms", frames < 100),
    ]
    return lines, goals, {"seconds": times, "import_s": package - empty, "import_all_s": all_of_it - empty}


# ------------------------------------------------------------------------------------------------- decoding


def long_video(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"preset": "ultrafast", "g": "50"}
        noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        for k in range(frames):
            picture = np.roll(noise, k, 1).repeat(4, 0).repeat(4, 1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def decode_all(path: Path) -> None:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24")


def decoding(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for frames in (250, 2500, 10000):
            path = Path(folder) / f"{frames}.mp4"
            long_video(path, frames)
            ours, everything = median_ms(3, lambda p=path: read_clip(p), lambda p=path: decode_all(p))
            rows.append((frames, f"{ours:.0f}", f"{everything:.0f}", f"{everything / ours:.1f}"))
            found[frames] = {"read_clip_ms": ours, "decode_all_ms": everything}
    lines = table("frames of 320 × 240 | 16 frames by `read_clip`, ms | all frames, ms | times faster", rows)
    ratio = found[2500]["decode_all_ms"] / found[2500]["read_clip_ms"]
    growth = found[10000]["read_clip_ms"] / found[2500]["read_clip_ms"]
    goals = [
        goal("16 frames of 2,500, over decoding all", "faster", f"{ratio:.1f} ×", ratio > 1.05),
        goal("16 frames of 10,000, over 16 of 2,500", "≤ 1.2 ×", f"{growth:.1f} ×", growth <= 1.2),
    ]
    return lines, goals, found


# ----------------------------------------------------------------------------------------------------- size


def size(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """An iteration without a network: what is ours must grow no faster than the clip."""

    def descent(t: int, side: int, ratios: int) -> Descent:
        pixels = torch.rand(1, 3, t, side, side)

        def score(x):
            return torch.log_softmax(x[:, :2].mean((2, 3, 4)), 1)

        config = make_config("step", "lesson", (t, side, side), {})
        return Descent(score, pixels, [0], [0] * ratios, [0.05 + 0.05 * k for k in range(ratios)], config)

    base, rows, found = (16, 112, 1), [], {}
    kinds = {
        "frames": [(8, 112, 1), base, (32, 112, 1), (64, 112, 1)],
        "side, px": [(16, 56, 1), base, (16, 224, 1)],
        "ratios at once": [base, (16, 112, 2), (16, 112, 4)],
    }
    for kind, cases in kinds.items():
        spent = median_ms(rounds, *(descent(*case).step for case in cases))
        axis = list(kinds).index(kind)
        work = [case[axis] ** (2 if kind == "side, px" else 1) for case in cases]
        slope = float(np.polyfit(np.log(work), np.log(spent), 1)[0])
        found[kind] = {"ms": dict(zip(map(str, cases), spent, strict=True)), "exponent": slope}
        rows += [(kind, case[axis], f"{ms:.1f}") for case, ms in zip(cases, spent, strict=True)]
    lines = table("what grows | to | ms an iteration", rows)
    most = max(value["exponent"] for value in found.values())
    shown = ", ".join(f"{kind} {value['exponent']:.2f}" for kind, value in found.items())
    goals = [goal("exponent of time against voxels or masks", "≤ 1.1", shown, most <= 1.1)]
    return lines, goals, found


SECTIONS = {
    "iteration": ("One iteration: R(2+1)D-18, 16 × 112 × 112, one ratio", iteration),
    "many": ("Many clips", many),
    "interactive": ("At a laptop", interactive),
    "decoding": ("Reading videos", decoding),
    "size": ("Larger clips, more ratios", size),
}


def write(done: dict, threads: int, rounds: int) -> None:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
    machine += f"torch {torch.__version__}"
    lines = ["# Speed", "", f"By `make bench`: {machine}; {threads} threads, medians of {rounds}.", ""]
    lines += table("goal | wanted | reached | met", [row for _, goals, _ in done.values() for row in goals])
    for name, (part, _, _) in done.items():
        lines += [f"## {SECTIONS[name][0]}", "", *part]
    (HERE / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    data = {"machine": machine, "threads": threads, **{name: facts for name, (_, _, facts) in done.items()}}
    (HERE / "report.json").write_text(json.dumps(data, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--peak", choices=("ours", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        take_peak(options.peak)
        return
    done: dict = {}
    for name in options.only:
        start = time.perf_counter()
        done[name] = SECTIONS[name][1](options.rounds, options.threads)
        write(done, options.threads, options.rounds)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print((HERE / "report.md").read_text())


if __name__ == "__main__":
    main()
