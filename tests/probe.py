"""Small material with known pixels, for widgets in a browser: the kernel imports it, and so does the test."""

import time

import torch

from steplab.clips import Clip
from steplab.explain import explain
from steplab.networks import Network

FRAMES, SIZE = 6, 28
LABEL = "<b>bright</b><img src=x onerror='window.harmed = true'>"
torch.set_num_threads(1)

pixels = torch.full((3, FRAMES, SIZE, SIZE), 0.2)
pixels[:, :, 8:20, 14:26] = torch.linspace(0.4, 1, FRAMES)[None, :, None, None]
clip = Clip(pixels, torch.arange(FRAMES) / 4, "square")
where = torch.zeros(3, FRAMES, SIZE, SIZE)
where[:, :, 8:20, 14:26] = 1 / 300


def scores(x):
    seen = (x * where).sum((1, 2, 3, 4))
    return torch.stack([0 * seen, seen], 1)


def slow_scores(x):
    time.sleep(0.02)
    return scores(x)


network, slow = (Network(fn, ("dark", LABEL)) for fn in (scores, slow_scores))
ask = {"ratios": (0.1, 0.2, 0.3, 0.4), "preset": "smoke", "progress": False}
result = explain(network, clip, 1, **ask)
other = explain(network, clip, 1, "middle", **ask)
