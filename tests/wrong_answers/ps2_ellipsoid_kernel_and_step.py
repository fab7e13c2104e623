"""Answers to the second assignment that must not pass; each costs the points of its own task."""

KERNEL = """
def ellipsoid_kernel(size):
    squares = [{square} for n in size]
    distance = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
    inside = (distance {inside}).float()
    return inside{divided}
"""
RIGHT = "(2 * torch.arange(n).double() / (n - 1) - 1) ** 2"
WINDOWS = """
def window_means(mask, kernel):
    return torch.nn.functional.conv3d(mask[None, None], {kernel}[None, None], stride={stride}{more})[0, 0]
"""
CORE = """
def core_loss(mask, ratio):
    means = losses.window_means(mask[None])[0].flatten().sort({order}).values
    template = torch.zeros_like(means)
    template[: {count}] = 1
    return ((means - template) ** 2){end}
"""
WEIGHTS = """
def frame_weights(frames, padding):
    share = torch.tensor({share}) / {total}
    weights = torch.zeros(frames)
    first, last = {span}
    for start in range(first, last + 1):
        for u in range(7):
            t = start + u
            t = {place}
            if 0 <= t < frames:
                weights[t] += share[u]
    return weights / weights.{mean}
"""
SHARE, SPAN = "[1, 45, 69, 81, 69, 45, 1]", '(0, frames - 7) if padding == "none" else (-3, frames - 4)'
PLACE = 't % frames if padding == "wrap" else min(max(t, 0), frames - 1)'
ENERGY = """
def step_energy(mask, probability, ratio, area_weight, core_weight):
    area, core = losses.area_loss(mask[None], ratio)[0], losses.core_loss(mask[None], ratio)[0]
    return {energy}
"""

WRONG = {
    "task1_kernel": {
        "float64 to the letter": KERNEL.format(square=RIGHT, inside="<= 1", divided=" / inside.sum()"),
        "not divided by Z": KERNEL.format(square=RIGHT, inside="<= 1 + 1e-9", divided=""),
        "the whole block (hidden tests only)": "def ellipsoid_kernel(size):\n    return torch.ones(size) / torch.ones(size).sum()",
        "the surface left out (hidden tests only)": KERNEL.format(
            square=RIGHT, inside="< 1 - 1e-9", divided=" / inside.sum()"
        ),
        "no first and no last slice (hidden tests only)": "def ellipsoid_kernel(size):\n"
        "    kernel = losses.ellipsoid_kernel(size, normalised=False)\n    kernel[0] = kernel[-1] = 0\n"
        "    return kernel / kernel.sum()",
    },
    "task2_windows": {
        "a window for each pixel": WINDOWS.format(kernel="kernel", stride="1", more=""),
        "every eleventh frame, too": WINDOWS.format(kernel="kernel", stride="11", more=""),
        "with padding": WINDOWS.format(kernel="kernel", stride="(1, 11, 11)", more=", padding=(3, 5, 5)"),
        "a sum instead of a mean": WINDOWS.format(
            kernel="(kernel > 0).float()", stride="(1, 11, 11)", more=""
        ),
        "the middle of each window (hidden tests only)": "def window_means(mask, kernel):\n"
        "    n, h, w = kernel.shape\n    found = mask[n // 2 : len(mask) - (n - 1) // 2]\n"
        "    found = found[:, h // 2 : mask.shape[1] - (h - 1) // 2 : 11]\n"
        "    return found[:, :, w // 2 : mask.shape[2] - (w - 1) // 2 : 11]",
        "an ellipsoid, whatever the kernel (hidden tests only)": "def window_means(mask, kernel):\n"
        "    return losses.window_means(mask[None], tuple(kernel.shape))[0]",
    },
    "task3_count": {
        "a share": "def window_count(ratio, size):\n    return ratio",
        "rounded down": "def window_count(ratio, size):\n    return int(ratio * size[0] * size[1] * size[2] / 311)",
        "the ideal ellipsoid": "def window_count(ratio, size):\n    import math\n\n    return math.ceil(ratio * math.prod(size) / 443)",
        "the ones of float64 (hidden tests only)": "def window_count(ratio, size):\n"
        "    import math\n\n    return math.ceil(ratio * math.prod(size) / 307)",
    },
    "task4_core_loss": {
        "a share of the windows": CORE.format(
            order="descending=True", count="round(ratio * len(means))", end=".sum()"
        ),
        "a mean": CORE.format(
            order="descending=True", count="losses.window_count(ratio, mask.shape)", end=".mean()"
        ),
        "without a gradient": CORE.format(
            order="descending=True", count="losses.window_count(ratio, mask.shape)", end=".sum().detach()"
        ),
        "smallest first (hidden tests only)": CORE.format(
            order="", count="losses.window_count(ratio, mask.shape)", end=".sum()"
        ),
        "every frame like the first (hidden tests only)": "def core_loss(mask, ratio):\n"
        "    return losses.core_loss(mask[:1].expand(mask.shape)[None], ratio)[0]",
    },
    "task5_weights": {
        "all ones (hidden tests only)": "def frame_weights(frames, padding):\n    return torch.ones(frames)",
        "not divided": WEIGHTS.format(share=SHARE, total=311, span=SPAN, place=PLACE, mean="new_tensor(1.0)"),
        "every frame of the kernel alike (hidden tests only)": WEIGHTS.format(
            share="[1, 1, 1, 1, 1, 1, 1]", total=7, span=SPAN, place=PLACE, mean="mean()"
        ),
        "a window begins at each frame": WEIGHTS.format(
            share=SHARE,
            total=311,
            span='(0, frames - 7) if padding == "none" else (0, frames - 1)',
            place=PLACE,
            mean="mean()",
        ),
        "wraps where it should replicate (hidden tests only)": WEIGHTS.format(
            share=SHARE, total=311, span=SPAN, place="t % frames", mean="mean()"
        ),
    },
    "task7_energy": {
        "uphill": ENERGY.format(energy="area_weight * area + core_weight * core + probability"),
        "a mean area": ENERGY.format(
            energy="area_weight * area / mask.numel() + core_weight * core - probability"
        ),
        "without L_K (hidden tests only)": ENERGY.format(energy="area_weight * area - probability"),
        "L_K times both weights (hidden tests only)": ENERGY.format(
            energy="area_weight * (area + 0 * core) + (core_weight + area_weight) * core - probability"
        ),
    },
}
