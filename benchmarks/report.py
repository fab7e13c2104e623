"""Speed, each part beside what it replaces, in one run: `make bench` writes report.md and report.json,
or report-avx2.md and .json where the CPU has no arithmetic for bfloat16.

    python benchmarks/report.py [--threads 2] [--rounds 7] [--only SECTION ...]
    python benchmarks/report.py --retell    # measures nothing

Medians and ratios; a busy machine makes all of them longer, so read the ratios. Sections are written as they
are done, so that a run that is stopped leaves what it had. Sections that only tell what others have measured
(masks, lessons, tests) can be brought up to date in the reports that are there: `--retell`.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import accelerator
import av
import numpy as np
import torch
from convergence import KEYS, known
from matplotlib.figure import Figure
from overhead import SIZE, measure, median_ms, parts, torchray_parts
from peers import against_peers
from published import PublishedLoop, check
from torchvision.models.video import r2plus1d_18

import steplab as sl
from steplab.clips import read_clip
from steplab.config import make_config
from steplab.engine import Descent, untouched
from steplab.explain import _bfloat16_pays
from steplab.metrics import compare
from steplab.networks import Network
from steplab.painting import Canvas, encode
from steplab.study import Study
from steplab.vgg_lstm import VGG16LSTM

HERE = Path(__file__).resolve().parent
KIND = torch.backends.cpu.get_cpu_capability()
NAME = "report" if torch.cpu._is_avx512_bf16_supported() else f"report-{KIND.lower()}"


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
    if "," in part:
        before = highest()
        descent = bare(*map(int, part.split(",")))
        for _ in range(3):
            descent.step()
        print((highest() - before) / 1000)
        return
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


VIDEOS, METHODS, RATIOS, ITERATIONS = 3207, 6, 4, 45  # of UCF101-24, of the paper, of preset `lesson`
GOAL = 2.0  # seconds for four ratios of a clip on one H100


def paper(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """What the paper's experiment costs, from a measured iteration."""
    facts = FACTS.get("iteration") or iteration(rounds, threads)[2]
    ours = min(m["iteration"] for m in facts["ours"].values())
    masks = VIDEOS * METHODS * RATIOS
    days = {
        "published, 2000 iterations": masks * 2000 * facts["published_ms"] / 86.4e6,
        f"ours, {ITERATIONS} iterations": masks * ITERATIONS * ours / 86.4e6,
    }
    seconds = FACTS.get("gpu", {}).get("r2plus1d_18", {}).get("four ratios, s")
    what = (
        "ours, on GPUs"
        if seconds
        else f"ours, on GPUs that reach the goal of {GOAL:.1f} s (none was measured)"
    )
    days[what] = VIDEOS * METHODS * (seconds or GOAL) / 86400
    rows = [(what, *(f"{d / n:,.2f}" for n in (1, 8, 64))) for what, d in days.items()]
    lines = [
        f"{VIDEOS} videos × {METHODS} methods × {RATIOS} ratios, R(2+1)D-18, from the iterations above:",
        "",
    ]
    lines += table(f"days on so many machines of {threads} threads, or GPUs, by Dask | 1 | 8 | 64", rows)
    lines += ["Cells do not wait for one another, so machines add up.", ""]
    return lines, [], {"days": days}


def many(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    from dask.distributed import LocalCluster

    stage, name = sl.Stage("action", split="test", seed=5), "stage-action-vgg16lstm"
    records = [stage[k] for k in range(12)]
    ask = {"preset": "smoke", "iterations": 60, "ratios": (0.1,), "metrics": ("probability",)}
    cells, spent = 2 * len(records), {}

    def run(folder: str, **where) -> float:
        start = time.perf_counter()
        grid = Study(records, [name], ["step", "ep3d"], store=folder, name="bench", **ask)
        grid.run(progress=False, **where).table()
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        spent["1 process"] = run(f"{folder}/one")
        spent["2 processes"] = run(f"{folder}/two", workers=2)
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            spent["2 workers of Dask"] = run(f"{folder}/dask", cluster=cluster.scheduler_address)
        spent["found in the store"] = run(f"{folder}/one")
    network = sl.load_network(name)
    clips, labels = [r.clip for r in records[:6]], [r.label for r in records[:6]]
    torch.set_num_threads(1)
    how = {"method": "step", "ratios": (0.1,), "preset": "smoke", "iterations": 15, "progress": False}
    one, together = median_ms(
        3,
        lambda: sl.explain(network, clips, labels, max_batch=1, **how),
        lambda: sl.explain(network, clips, labels, max_batch=6, **how),
    )
    torch.set_num_threads(threads)
    entries, opened = full_store()
    rows = [(what, f"{s:.1f}", f"{s / cells * 1000:.0f}") for what, s in spent.items()]
    lines = table(f"{cells} masks of 60 iterations, narrow VGG-LSTM, one thread each | s | ms a mask", rows)
    batched = f"one after the other {one:.0f} ms, together {together:.0f} ms"
    lines += [f"Six masks at once in one thread: {batched}.", ""]
    lines += [f"The table of {entries} entries, from an opened store: {opened:.1f} s.", ""]
    alone = spent["1 process"]
    gain, dask = alone / spent["2 processes"], alone / spent["2 workers of Dask"]
    share = spent["found in the store"] / alone
    goals = [
        goal("two processes over one (start included)", "≥ 1.8 ×", f"{gain:.2f} ×", gain >= 1.8),
        goal("two workers of Dask over one process", "≥ 1.8 ×", f"{dask:.2f} ×", dask >= 1.8),
        goal("six narrow masks over one by one", "≥ 1.5 ×", f"{one / together:.2f} ×", one / together >= 1.5),
        goal("store: reading over finding", "< 2 %", f"{share:.1%}", share < 0.02),
        goal(f"table of {entries} entries", "< 2 s", f"{opened:.1f} s", opened < 2),
    ]
    return lines, goals, {"seconds": spent, "one_by_one_ms": one, "batched_ms": together, "table_s": opened}


def full_store(clips: int = 500, entries: int = 10_000) -> tuple[int, float]:
    """Seconds that the table of a store of 10,000 entries takes: 5,000 explanations with a metric each."""
    stage = sl.Stage("action", split="test", seed=5)
    small = [(r, r.clip.pixels[:, ::2, ::8, ::8]) for r in (stage[k] for k in range(4))]
    records = []
    for k in range(clips):
        record, pixels = small[k % len(small)]
        clip = sl.Clip((pixels + k / 5000).clamp(0, 1), torch.arange(8.0), f"clip {k}")
        records.append(sl.Record(clip, record.label, [], None, None, f"clip {k}"))
    network = Network(torch.nn.Sequential(Means(), torch.nn.Linear(3, 8)), [*stage.classes], name="means")
    with tempfile.TemporaryDirectory() as folder:
        ask = {"preset": "smoke", "ratios": (0.1,), "metrics": ("probability",), "store": folder}
        grid = Study(records, [network], ["random"], seeds=range(entries // (2 * clips)), name="full", **ask)
        grid.run(progress=False)
        start = time.perf_counter()
        rows = Study(records, [network], ["random"], seeds=grid.seeds, name="full", **ask).table()
        spent = time.perf_counter() - start
        assert rows.value.notna().all() and len([*Path(folder).iterdir()]) == entries
    return entries, spent


class Means(torch.nn.Module):
    """The mean of each colour: (batch, 3, T, H, W) to (batch, 3)."""

    def forward(self, pixels):
        return pixels.mean((2, 3, 4))


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
    for family, preset in product(("r2plus1d", "vgg16lstm"), ("smoke", "lesson")):
        network, useful = sl.load_network(f"stage-action-{family}"), []

        def seen(state, useful=useful):
            if not useful and float(state.masks[0].mean()) <= 0.15 and float(state.probability[0]) >= 0.5:
                useful.append(time.perf_counter())

        start = time.perf_counter()
        ask = {"ratios": (0.1,), "preset": preset, "callback": seen, "progress": False}
        result = sl.explain(network, record.clip, record.label, **ask)
        end = time.perf_counter()
        count = int(np.isfinite(result.history["energy"]).sum())
        times[f"{family}, {preset}"] = (useful[0] - start if useful else float("nan"), end - start, count)
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
    whole = [t for name, t in times.items() if name.endswith("lesson")]
    first, last = (max(t[k] for t in whole) for k in (0, 1))
    goals = [
        goal("first useful mask (lesson)", "≤ 1.5 s", f"{first:.1f} s", first <= 1.5),
        goal("finished mask (lesson)", "≤ 5 s", f"{last:.1f} s", last <= 5),
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
            (ours,) = median_ms(5, lambda p=path: read_clip(p))
            start = time.perf_counter()
            decode_all(path)
            everything = 1000 * (time.perf_counter() - start)
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


# -------------------------------------------------------------------------------------------------- quality


def quality(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """Seconds of whole searches; how good their masks are, `masks` says."""
    record, seconds = sl.Stage("action", split="test", seed=1)[0], {}
    for family in ("r2plus1d", "vgg16lstm"):
        network = sl.load_network(f"stage-action-{family}")
        with untouched(network):
            loop = PublishedLoop(network.log_probabilities, record.clip.pixels[None], record.label, 0.1)
            loop.iteration = 101
            (published,) = median_ms(2 * rounds, loop.step)

        def search(*ratios, network=network):
            start = time.perf_counter()
            sl.explain(network, record.clip, record.label, "step", ratios, "lesson", progress=False)
            return time.perf_counter() - start

        seconds[family] = (2 * published, search(0.1), search(0.05, 0.1, 0.2, 0.3))
    rows = [
        (
            f,
            f"{p:.0f}",
            f"{one:.1f}",
            f"{p / one:.0f} ×",
            f"{4 * p:.0f}",
            f"{four:.1f}",
            f"{4 * p / four:.0f} ×",
        )
        for f, (p, one, four) in seconds.items()
    ]
    head = "narrow network | published loop, 2000 iterations, s | lesson, s | times less"
    lines = table(f"{head} | published, four ratios, s | lesson, s | times less", rows)
    lines += ["The published loop's seconds are 2000 times its median iteration.", ""]
    least = [min(p / one for p, one, _ in seconds.values()), min(4 * p / f for p, _, f in seconds.values())]
    goals = [
        goal("published loop's time over ours, one ratio", "≥ 20 ×", f"{least[0]:.0f} ×", least[0] >= 20),
        goal("... four ratios of a clip", "≥ 30 ×", f"{least[1]:.0f} ×", least[1] >= 30),
    ]
    return lines, goals, {"seconds": seconds}


# A mask of ours may be worse than the published loop's by so much, at the lower end of the interval.
MARGINS = {"probability": 0.05, "IoU": 0.02, "S-PT": 0.05}


def masks(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """How good the masks of such a search are: benchmarks/convergence.csv; nothing is run."""
    compared = []
    for (family, ratio), mine in known().query("task == 'action'").groupby(["family", "ratio"]):
        sides = {name: part.set_index("clip")[[*KEYS]] for name, part in mine.groupby("setting")}
        name = "lesson"
        if not {"released", name} <= set(sides):
            continue
        clips = sides[name].index.intersection(sides["released"].index)
        for key, margin in MARGINS.items():
            found = compare(sides[name].loc[clips, key], sides["released"].loc[clips, key])
            compared.append((family, ratio, len(clips), key, str(found), margin, found.low >= -margin))
    lines = table(
        "narrow network | ratio | clips | of the mask | lesson − published (95 %) | may lose | holds",
        [(*row[:-1], "yes" if row[-1] else "**no**") for row in compared],
    )
    held = sum(row[-1] for row in compared)
    met = goal(
        "as good: comparisons that hold", "all", f"{held} of {len(compared)}", held == len(compared) > 0
    )
    return lines, [met], {"compared": [list(map(str, row)) for row in compared]}


# ---------------------------------------------------------------------------------------------------- peers


def peers(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    found = against_peers(rounds)
    rows = [(what, peer, f"{a:.0f}", f"{b:.0f}", f"{b / a:.2f}") for what, peer, a, b in found]
    lines = table("work, narrow R(2+1)D | peer | ours, ms | theirs, ms | times faster", rows)
    lines += ["Ours also scores the clip and the mask that is kept: two more passes of the network.", ""]
    return lines, [], {"ms": found}


# ------------------------------------------------------------------------------------------------------ gpu


def gpu(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """Goals of one GPU where there is one; else what the compiler does on the CPU."""
    there = torch.cuda.is_available()
    device = torch.device("cuda" if there else "cpu")
    if there:
        names = [str(k) for k in range(400)]
        vgg = Network(VGG16LSTM(400).eval(), names, output="probability", size=224, name="VGG16LSTM")
        asked = {large_network(): (1, 2, 4, 8, 16, 32), vgg: (1, 2, 4, 8)}
    else:
        asked = {sl.load_network("stage-action-r2plus1d"): (1, 4)}
    rows, found = [], {}
    for network, batches in asked.items():
        mine = [accelerator.iterations(network, device, n, rounds) for n in batches]
        found[network.name] = {
            "iterations": mine,
            **(accelerator.whole(network, device, rounds) if there else {}),
        }
        for m in mine:
            figures = [f"{m[k]:.1f}" for k in ("network", "plain", "compiled")]
            memory = f"{m['MB, compiled']:.0f}" if there else ""
            speed = f"{1000 * m['masks'] / m['compiled']:.1f}"
            rows.append((network.name, int(m["masks"]), *figures, speed, memory))
    what = torch.cuda.get_device_name() if there else "no GPU in this machine: the compiler's C++ on the CPU"
    lines = [f"{what}.", ""]
    head = "network | masks at once | network alone, ms | iteration, ms | compiled, ms"
    lines += table(f"{head} | mask iterations a second | MB", rows)
    goals = [
        ("four ratios of a clip on one H100", f"≤ {GOAL:.1f} s", "unmeasured", "**no**"),
        ("faster than the published loop there", "≥ 60 ×", "unmeasured", "**no**"),
        ("the network's share of an iteration there", "≥ 85 %", "unmeasured", "**no**"),
    ]
    if there:
        large = found["r2plus1d_18"]
        spent, four = large["four ratios, s"], large["iterations"][2]
        faster = 4 * 2000 * large["published"] / 1000 / spent
        share = four["network"] / four["compiled"]
        goals = [
            goal("four ratios of a clip on this GPU", f"≤ {GOAL:.1f} s", f"{spent:.1f} s", spent <= GOAL),
            goal("faster than the published loop there", "≥ 60 ×", f"{faster:.0f} ×", faster >= 60),
            goal("the network's share of an iteration there", "≥ 85 %", f"{share:.0%}", share >= 0.85),
        ]
    return lines, goals, found


# ----------------------------------------------------------------------------------------------------- size


def bare(t: int, side: int, masks: int) -> Descent:
    """A descent with next to no network."""
    pixels = torch.rand(1, 3, t, side, side)

    def score(x):
        return torch.log_softmax(x[:, :2].mean((2, 3, 4)), 1)

    config = make_config("step", "lesson", (t, side, side), {})
    return Descent(score, pixels, [0], [0] * masks, [0.05 + 0.05 * k for k in range(masks)], config)


def size(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """An iteration without a network: what is ours must grow no faster than the clip."""
    base, rows, found = (16, 112, 1), [], {}
    kinds = {
        "frames": [(8, 112, 1), base, (32, 112, 1), (64, 112, 1)],
        "side, px": [(16, 56, 1), base, (16, 168, 1), (16, 224, 1)],
        "masks at once": [base, (16, 112, 2), (16, 112, 4), (16, 112, 8)],
    }
    for kind, cases in kinds.items():
        spent = median_ms(rounds, *(bare(*case).step for case in cases))
        taken = [peak_of(",".join(map(str, case)), threads) for case in cases]
        axis = list(kinds).index(kind)
        work = [case[axis] ** (2 if kind == "side, px" else 1) for case in cases]
        slopes = [float(np.polyfit(np.log(work), np.log(y), 1)[0]) for y in (spent, taken)]
        found[kind] = {"to": [case[axis] for case in cases], "ms": spent, "MB": taken, "exponents": slopes}
        rows += [
            (kind, case[axis], f"{ms:.1f}", f"{mb:.0f}")
            for case, ms, mb in zip(cases, spent, taken, strict=True)
        ]
    lines = table("what grows | to | ms an iteration | MB at most", rows)
    lines += [f"![Time and memory against size]({NAME}.png)", ""]
    draw(found)
    goals = []
    for k, what in enumerate(("time", "memory")):
        shown = ", ".join(f"{kind} {value['exponents'][k]:.2f}" for kind, value in found.items())
        most = max(value["exponents"][k] for value in found.values())
        goals.append(goal(f"exponent of {what} against voxels or masks", "≤ 1.1", shown, most <= 1.1))
    return lines, goals, found


def draw(found: dict) -> None:
    """Time and memory against size, on logarithmic axes, beside lines of slope one."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (kind, value) in enumerate(found.items()):
        x = np.array(value["to"], float)
        grown = (x / x[0]) ** (2 if kind == "side, px" else 1)
        for row, unit in enumerate(("ms", "MB")):
            axis = axes[row, column]
            axis.loglog(x, value[unit][0] * grown, color="0.7", linestyle="--", label="in proportion")
            axis.loglog(x, value[unit], "o-", color="#0072B2", label="measured")
            axis.set_xticks(x, [f"{v:g}" for v in x], minor=False)
            axis.minorticks_off()
            axis.set_xlabel(kind)
            axis.grid(alpha=0.3)
            if not column:
                axis.set_ylabel(("an iteration, ms", "at most, MB")[row])
    axes[0, 0].legend(frameon=False)
    figure.savefig(HERE / f"{NAME}.png", dpi=90)


# ----------------------------------------------------------------------------------------- lessons and tests


WORDS = {"a": 1.0, "two": 2.0, "three": 3.0, "four": 4.0}


def lessons(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """What the lessons promise and what they took when they were stored; nothing is run."""
    rows, found = [], {}
    for path in sorted((HERE.parent / "notebooks").glob("0*.ipynb")):
        text = path.read_text(encoding="utf-8")
        said = re.search(r"Run time\*\* \| (under|about) (\w+) minutes?( and a half)?", text)
        took = re.search(r"(\d+) seconds from the start|lesson took (\d+) s", text)
        assert said and took, f"{path.name} does not say how long it takes"
        promised = 60 * (WORDS[said[2]] + 0.5 * bool(said[3]))
        allowed = promised + (30 if said[1] == "about" else 0)
        seconds = int(took[1] or took[2])
        found[path.stem] = {"promised": promised, "seconds": seconds, "within": seconds <= allowed}
        rows.append((path.stem, said[0].split("| ")[1], seconds, "yes" if seconds <= allowed else "**no**"))
    lines = table("lesson | says it takes | took when it was stored, s | within", rows)
    lines += ["Within: at most half a minute more than “about” so many.", ""]
    held = sum(f["within"] for f in found.values())
    met = goal("lessons within the time they name", "all", f"{held} of {len(found)}", held == len(found))
    return lines, [met], found


def checks(rounds: int, threads: int) -> tuple[list[str], list, dict]:
    """The last whole `make test` of this checkout, which leaves its times in runs/tests.xml."""
    path, wanted = HERE.parent / "runs" / "tests.xml", "≤ 15 min"
    files = {p.stem for p in (HERE.parent / "tests").glob("test_*.py")}
    suite = ElementTree.parse(path).getroot().find("testsuite") if path.exists() else None
    cases = [] if suite is None else suite.findall("testcase")
    if suite is None or files - {case.get("classname", "").split(".")[1] for case in cases}:
        lines = ["No whole run is on record here: `make test` first.", ""]
        return lines, [("`make test`", wanted, "unmeasured", "**no**")], {}
    minutes = float(suite.get("time", "nan")) / 60
    spent: dict[str, list[float]] = {}
    for case in cases:
        spent.setdefault(case.get("classname", "").split(".")[1], []).append(float(case.get("time", 0)))
    most = sorted(spent.items(), key=lambda item: -sum(item[1]))[:12]
    lines = [f"{len(cases)} tests in {minutes:.1f} minutes; the files that take most:", ""]
    lines += table("file | tests | s", [(name, len(s), f"{sum(s):.0f}") for name, s in most])
    longest = sorted(cases, key=lambda case: -float(case.get("time", 0)))[:12]
    lines += table("test | s", [(f"`{c.get('name')}`", f"{float(c.get('time', 0)):.0f}") for c in longest])
    met = goal("`make test`", wanted, f"{minutes:.1f} min", minutes <= 15)
    return lines, [met], {"minutes": minutes, "tests": len(cases)}


FACTS: dict = {}  # of the sections that are done
SECTIONS = {
    "iteration": ("One iteration: R(2+1)D-18, 16 × 112 × 112, one ratio", iteration),
    "quality": ("To equal quality", quality),
    "masks": ("Equal quality", masks),
    "peers": ("Other people's implementations", peers),
    "many": ("Many clips", many),
    "interactive": ("At a laptop", interactive),
    "decoding": ("Reading videos", decoding),
    "gpu": ("On a GPU", gpu),
    "paper": ("The paper's experiment", paper),
    "size": ("Larger clips, more ratios", size),
    "lessons": ("Lessons", lessons),
    "checks": ("Tests", checks),
}
TOLD = ("masks", "lessons", "checks")  # what others have measured


# Of goals that were missed when this was written; the tables below them are the profile.
REASONS = {
    "whole iteration": "drawing the masks is most of the rest: 49 exponentials a pixel, twice",
    "faster than the published loop": "the network takes most of both, and this CPU has no bfloat16",
    "peak memory": "most of both is what the network keeps for its backward pass, here in float32",
    "two workers of Dask": "two processes without it come little further on this CPU",
    "six narrow masks": "one thread is as busy with one clip as with six; only small layers gain",
    "`make test`": "lessons, run by papermill and in a browser, and training take most of it",
    "first useful mask": "the ratio falls to a tenth in 20 iterations",
    "16 frames of 10,000": "opening a file reads its index, which grows with its frames",
    "exponent of time": "blocks of large frames no longer fit the processor's cache",
}


def missed(goals: list) -> list[str]:
    """Why, where that is known, the goals were missed that were."""
    lines = []
    for what, _, reached, met in goals:
        why = next((reason for start, reason in REASONS.items() if what.startswith(start)), "not known")
        if reached == "unmeasured":
            why = "no whole run on record" if "make test" in what else "no GPU in this machine"
        lines += [f"- {what}: {why}."] if met != "yes" else []
    return ["Missed, and why:", "", *lines, ""] if lines else []


def write(name: str, machine: str, goals: list, parts: dict[str, list[str]], facts: dict) -> None:
    lines = ["# Speed", "", machine, "", *table("goal | wanted | reached | met", goals), *missed(goals)]
    for title, part in parts.items():
        lines += [f"## {title}", "", *part]
    (HERE / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_done(done: dict, threads: int, rounds: int) -> None:
    machine = f"{os.cpu_count()} cores, {platform.machine()} ({KIND}), Python {platform.python_version()}, "
    machine += f"torch {torch.__version__}"
    line = f"By `make bench`: {machine}; {threads} threads, medians of {rounds}."
    facts = {"machine": machine, "threads": threads, **{name: found for name, (_, _, found) in done.items()}}
    parts = {SECTIONS[name][0]: part for name, (part, _, _) in done.items()}
    write(NAME, line, [row for _, goals, _ in done.values() for row in goals], parts, facts)


def retell(name: str) -> None:
    """Bring the sections of a stored report up to date that measure nothing; all else stays as it is.

    Times of tests belong to a machine, so only the report of this kind of CPU gets them anew.
    """
    head, *old = (HERE / f"{name}.md").read_text(encoding="utf-8").split("\n## ")
    facts = json.loads((HERE / f"{name}.json").read_text())
    rows = [line for line in head.splitlines() if line.startswith("| ")][1:]
    goals = {row[0]: row for row in (tuple(line.strip("| ").split(" | ")) for line in rows)}
    parts = {part.splitlines()[0]: [*part.splitlines()[2:], ""] for part in old}
    for told in TOLD if name == NAME else TOLD[:2]:
        parts[SECTIONS[told][0]], reached, facts[told] = SECTIONS[told][1](0, 0)
        goals |= {row[0]: row for row in reached}
    order = [title for title, _ in SECTIONS.values()]
    parts = dict(sorted(parts.items(), key=lambda item: order.index(item[0])))
    write(name, head.splitlines()[2], [*goals.values()], parts, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--retell", action="store_true", help="measure nothing: what others measured since")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.retell:
        for path in HERE.glob("report*.md"):
            retell(path.stem)
        return
    torch.set_num_threads(options.threads)
    if options.peak:
        take_peak(options.peak)
        return
    done: dict = {}
    for name in options.only:
        start = time.perf_counter()
        done[name] = SECTIONS[name][1](options.rounds, options.threads)
        FACTS[name] = done[name][2]
        write_done(done, options.threads, options.rounds)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print((HERE / f"{NAME}.md").read_text())


if __name__ == "__main__":
    main()
