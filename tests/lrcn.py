"""A real CNN-LSTM, built from its published weights: five sports, 20 frames of 128 x 128.

The weights lie in `../shared/data/lrcn_ucf50_5cls`; its README there says how they are laid out.
"""

from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from steplab.clips import Clip
from steplab.networks import Network

CLASSES = ("Biking", "Diving", "GolfSwing", "Punch", "Rowing")
FRAMES, SIZE = 20, 128


class LRCN(nn.Module):
    """Four convolutions per frame, an LSTM, one linear layer on its last step; gives logits."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.pools = (4, 4, 2, 2)
        self.lstm = nn.LSTM(256, 32, batch_first=True)
        self.dense = nn.Linear(32, len(CLASSES))

    def forward(self, x):
        maps = x.transpose(1, 2).flatten(0, 1)
        for convolution, pool in zip(self.convolutions, self.pools, strict=True):
            maps = F.max_pool2d(torch.relu(convolution(maps)), pool)
        flat = maps.permute(0, 2, 3, 1).flatten(1)  # height, width, channel
        return self.dense(self.lstm(flat.unflatten(0, (len(x), x.shape[2])))[0][:, -1])


def load(shared: Path) -> Network:
    """The network with its real weights, from Keras's layouts."""
    stored = np.load(shared / "lrcn_ucf50_5cls/lrcn_weights_extracted.npz")
    w = [torch.from_numpy(stored[f"variables|{n}|.ATTRIBUTES|VARIABLE_VALUE"]) for n in range(13)]
    module = LRCN()
    state = {}
    for n in range(4):
        state[f"convolutions.{n}.weight"] = w[2 * n].permute(3, 2, 0, 1).contiguous()
        state[f"convolutions.{n}.bias"] = w[2 * n + 1]
    # gates stand in the same order i, f, c, o; there is one bias
    state |= {"lstm.weight_ih_l0": w[8].T, "lstm.weight_hh_l0": w[9].T, "lstm.bias_ih_l0": w[10]}
    state |= {"lstm.bias_hh_l0": torch.zeros(128), "dense.weight": w[11].T, "dense.bias": w[12]}
    module.load_state_dict(state)
    return Network(module.eval(), CLASSES, lambda rgb: rgb.flip(1), frames=FRAMES, size=SIZE, name="lrcn")


def read(path: Path) -> tuple[Clip, list[int], tuple[int, int]]:
    """The clip as the network's author read it: 20 frames at a stride of N // 20, stretched to 128 x 128.

    Returns the clip, the numbers of its frames, and height and width before stretching.
    """
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = [i * max(len(frames) // FRAMES, 1) for i in range(FRAMES)]
    pixels = torch.from_numpy(np.stack([frames[i] for i in chosen])).permute(0, 3, 1, 2).float() / 255
    small = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear").transpose(0, 1).contiguous()
    return Clip(small, torch.tensor(chosen) / 25.0, path.name), chosen, tuple(pixels.shape[-2:])
