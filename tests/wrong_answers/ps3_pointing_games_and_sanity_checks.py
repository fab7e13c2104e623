"""Answers to the third assignment that must not pass; each costs the points of its own task."""

TOUCHES = """
def touches(x, y, box, radius):
    x0, y0, x1, y1 = (float(v) for v in box)
    across = x - min(max(x, x0), {right})
    down = y - min(max(y, y0), {bottom})
    return {near}
"""
SPATIAL = """
def spatial_pointing(heat, near, annotated):
    hits = []
    for frame, close in zip({frames}):
        {hit}
    return sum(hits) / len(hits)
"""
BOTH = "heat[annotated], near[annotated]"
TIES = "hits.append(float(close[frame == frame.max()].float().mean()))"
AVERAGES = """
def averages(values, frames, labels):
    known = {known}
    values, frames, labels = values[known], frames[known], labels[known]
    classes = [values[labels == name].mean() for name in np.unique(labels)]
    return {micro}, {videos}, {classes}
"""
KNOWN, MICRO, CLASSES = (
    "~np.isnan(values)",
    "(values * frames).sum() / frames.sum()",
    "sum(classes) / len(classes)",
)
CONTROL = """
def against_control(method, control, seed):
    numbers = np.random.default_rng({seed})
    draws = numbers.integers(0, {count}, (2000, {count}))
    means = {means}
    low, high = np.percentile(means, {ends})
    return float((method - control).mean()), float(low), float(high)
"""
PAIRED = "(method - control)[draws].mean(1)"
LIKENESS = """
def likeness(a, b):
    ranks = [{rank} for x in (a, b)]
    one, other = (r - r.mean(1, keepdim=True) for r in ranks)
    return float(((one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)).{end})
"""

WRONG = {
    "task1_touches": {
        "the pixel must be inside": "def touches(x, y, box, radius):\n"
        "    return bool(box[0] <= x < box[2] and box[1] <= y < box[3])",
        "a grown box (hidden tests only)": TOUCHES.format(
            right="x1 - 1", bottom="y1 - 1", near="max(abs(across), abs(down)) <= radius"
        ),
        "rows and columns exchanged": "def touches(x, y, box, radius):\n    x, y = y, x\n"
        + TOUCHES.format(right="x1 - 1", bottom="y1 - 1", near="across**2 + down**2 <= radius**2").split(
            "\n", 2
        )[2],
        "the right edge is inside (hidden tests only)": TOUCHES.format(
            right="x1", bottom="y1", near="across**2 + down**2 <= radius**2"
        ),
    },
    "task2_spatial": {
        "the hottest pixel of the whole clip": "def spatial_pointing(heat, near, annotated):\n"
        "    return float(near.flatten()[heat.flatten().argmax()])",
        "energy instead of the maximum (hidden tests only)": "def spatial_pointing(heat, near, annotated):\n"
        "    energy = (heat * near).sum((1, 2)) / heat.sum((1, 2)).clamp(min=1e-9)\n"
        "    return float(energy[annotated].mean())",
        "the first of equals (hidden tests only)": SPATIAL.format(
            frames=BOTH, hit="hits.append(float(close.flatten()[frame.flatten().argmax()]))"
        ),
        "the luckiest of equals (hidden tests only)": SPATIAL.format(
            frames=BOTH, hit="hits.append(float(close[frame == frame.max()].any()))"
        ),
        "frames without a box as well (hidden tests only)": SPATIAL.format(frames="heat, near", hit=TIES),
    },
    "task3_temporal": {
        "the frame with the largest sum": "def temporal_pointing(heat, segment):\n"
        "    return float(segment[0] <= int(heat.sum((1, 2)).argmax()) < segment[1])",
        "the share of all heat": "def temporal_pointing(heat, segment):\n"
        "    return float(heat[segment[0] : segment[1]].sum() / heat.sum())",
        "the first of equals (hidden tests only)": "def temporal_pointing(heat, segment):\n"
        "    frame = int(heat.flatten().argmax()) // heat[0].numel()\n"
        "    return float(segment[0] <= frame < segment[1])",
        "the end belongs to it (hidden tests only)": "def temporal_pointing(heat, segment):\n"
        "    hottest = heat == heat.max()\n"
        "    return float(hottest[segment[0] : segment[1] + 1].sum() / hottest.sum())",
    },
    "task4_averages": {
        "three times the same": AVERAGES.format(
            known=KNOWN, micro="values.mean()", videos="values.mean()", classes="values.mean()"
        ),
        "NaN as nothing": "def averages(values, frames, labels):\n    values = np.nan_to_num(values)\n"
        + "\n".join(
            AVERAGES.format(
                known="frames >= 0", micro=MICRO, videos="values.mean()", classes=CLASSES
            ).splitlines()[2:]
        ),
        "classes by their videos (hidden tests only)": AVERAGES.format(
            known=KNOWN, micro=MICRO, videos="values.mean()", classes="values.mean()"
        ),
        "changes its arguments (hidden tests only)": "def averages(values, frames, labels):\n"
        "    unknown = np.isnan(values)\n    kept = values[~unknown].copy(), frames[~unknown], labels[~unknown]\n"
        "    values[unknown] = 0\n    values, frames, labels = kept\n"
        "    classes = [values[labels == name].mean() for name in np.unique(labels)]\n"
        "    return (values * frames).sum() / frames.sum(), values.mean(), sum(classes) / len(classes)",
    },
    "task5_control": {
        "the wrong way round": "def against_control(method, control, seed):\n    method, control = control, method\n"
        + "\n".join(
            CONTROL.format(seed="seed", count="len(method)", means=PAIRED, ends="[2.5, 97.5]").splitlines()[
                2:
            ]
        ),
        "another seed each time": CONTROL.format(
            seed="", count="len(method)", means=PAIRED, ends="[2.5, 97.5]"
        ),
        "the spread of clips (hidden tests only)": "def against_control(method, control, seed):\n    difference = method - control\n"
        "    low, high = np.percentile(difference, [2.5, 97.5])\n    return float(difference.mean()), float(low), float(high)",
        "not paired": CONTROL.format(
            seed="seed",
            count="len(method)",
            means="method[draws].mean(1) - control[draws[::-1]].mean(1)",
            ends="[2.5, 97.5]",
        ),
        "half of it (hidden tests only)": CONTROL.format(
            seed="seed", count="len(method)", means=PAIRED, ends="[25, 75]"
        ),
    },
    "task7_likeness": {
        "numbers, not ranks": LIKENESS.format(rank="x.flatten(1).double()", end="mean()"),
        "never negative": LIKENESS.format(
            rank="x.flatten(1).argsort(1).argsort(1).double()", end="abs().mean()"
        ),
        "the whole clip at once (hidden tests only)": LIKENESS.format(
            rank="x.reshape(1, -1).argsort(1).argsort(1).double()", end="mean()"
        ),
        "one argsort": LIKENESS.format(rank="x.flatten(1).argsort(1).double()", end="mean()"),
    },
}
