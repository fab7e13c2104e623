"""The published loop of STEP, written as plainly as its description: what the engine is measured against.

Nothing here is tuned. Each iteration draws the masks from all 49 neighbours of each pixel at once, picks from
a pyramid of eight blurs, and sorts all values twice. `check` compares its parts with the library's, and
`trajectory` whole searches, also with what the authors' demo itself gave.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from steplab.config import make_config
from steplab.engine import Descent, untouched
from steplab.losses import ellipsoid_kernel
from steplab.masks import MaskGenerator
from steplab.networks import load_network
from steplab.perturb import PYRAMID_LEVELS, Perturbation, blur
from steplab.stage import Stage


class PublishedLoop:
    """One mask of one clip; `step()` is one iteration.

    Args:
        score: log-probabilities (1, classes) of a clip (1, 3, T, H, W).
        pixels: (1, 3, T, H, W), values in [0, 1].
        target, ratio: the class, and the share of the padded mask to keep.
        outside: color beyond the frame's edges, `network.zero_color(pixels)`.
    """

    def __init__(self, score, pixels: Tensor, target: int, ratio: float, outside=(0.0, 0.0, 0.0)):
        self.score, self.target, self.ratio = score, target, ratio
        time, height, width = pixels.shape[2:]
        self.layout = MaskGenerator((time, height, width), boundary="padded")  # its numbers, not its code
        self.layout.weights = self.layout.weights.to(pixels)
        self.seeds = torch.ones(1, *self.layout.seed_shape, device=pixels.device, requires_grad=True)
        self.optimiser = torch.optim.SGD([self.seeds], lr=0.05, momentum=0.9, dampening=0.9)
        strengths = [20 * height / 112 * (1 - k / (PYRAMID_LEVELS - 1)) for k in range(PYRAMID_LEVELS)]
        color = pixels.new_tensor(outside)[:, None, None, None]  # zero after the network's normalization
        self.pyramid = torch.stack(
            [blur(pixels - color, s, "zero") + color if s else pixels for s in strengths]
        )
        self.kernel = ellipsoid_kernel(device=pixels.device)[None, None]
        voxels = int(7 * 11 * 11 * 0.5236)
        self.windows = -int(-ratio * time * (height + 22) * (width + 22) // voxels)
        self.iteration = 0

    def masks(self) -> Tensor:
        """(1, T, H + 22, W + 22), each value a smooth maximum over 49 seeds."""
        g, side = self.layout, 2 * self.layout.radius + 1
        grid = F.pad(self.seeds, (g.padding,) * 4)
        near = grid.unfold(2, side, 1).unfold(3, side, 1)  # (1, T, rows, columns, 7, 7)
        lit = near[..., None, None] * g.weights  # ... and the place within a cell, 7 x 7
        lit = lit.flatten(4, 5)
        drawn = (lit * torch.softmax(20 * lit, dim=4)).sum(4).permute(0, 1, 2, 4, 3, 5)
        high, wide = g.drawn_size()
        return drawn.flatten(4, 5).flatten(2, 3)[:, :, :high, :wide]

    def blend(self, masks: Tensor) -> Tensor:
        """Between the two nearest of eight blurs, for each voxel."""
        depth = masks[:, None] * (PYRAMID_LEVELS - 1)
        low = depth.detach().floor().clamp(0, PYRAMID_LEVELS - 2)
        index = low.long().expand(-1, 3, -1, -1, -1)[None]
        below, above = self.pyramid.gather(0, index)[0], self.pyramid.gather(0, index + 1)[0]
        return below + (depth - low) * (above - below)

    def step(self) -> None:
        whole = self.masks()
        m = self.layout.margin
        crop = whole[:, :, m : m + self.pyramid.shape[-2], m : m + self.pyramid.shape[-1]]
        values = (
            whole.flatten()[torch.randperm(whole.numel(), device=whole.device)].sort(descending=True).values
        )
        ones = torch.zeros_like(values)
        ones[: int(self.ratio * len(values))] = 1
        energy = 300 * 1.0008668**self.iteration * ((values - ones) ** 2).mean()
        if self.iteration > 100:
            means = F.conv3d(whole[None], self.kernel, stride=(1, 11, 11)).flatten()
            means = means.sort(descending=True).values
            core = ((means[: self.windows] - 1) ** 2).mean() + (means[self.windows :] ** 2).mean()
            energy = energy + 300 * core
        energy = energy - self.score(self.blend(crop))[0, self.target]
        self.optimiser.zero_grad()
        energy.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.seeds.clamp_(0, 1)
        self.iteration += 1


def check() -> None:
    """Masks and blend are those of the library's `released` preset."""
    pixels, color = torch.rand(1, 3, 4, 112, 112), (0.4, 0.5, 0.6)
    loop = PublishedLoop(None, pixels, 0, 0.1, color)
    with torch.no_grad():
        loop.seeds.copy_(torch.rand(loop.seeds.shape))
        generator = MaskGenerator((4, 112, 112), boundary="padded")
        whole = generator.whole(loop.seeds)
        assert torch.allclose(loop.masks(), whole, atol=1e-5), "masks"
        crop, blend = generator.crop(whole), Perturbation(pixels, "pyramid", outside=color)
        assert torch.allclose(loop.blend(crop), blend(crop), atol=1e-5), "blend"


# Of the authors' demo, unpatched, on clip 1: means of the visible mask by iteration, and weighted terms.
DEMO_MEANS = {20: 0.883, 100: 0.575, 199: 0.248}
DEMO_TERMS = {("area", 20): 174.3, ("core", 101): 86.2, ("area", 199): 8.20}


def trajectory(iterations: int = 200) -> list[str]:
    """Preset `released` beside this loop and beside the demo's own numbers, on the clip these are of.

    Until L_K sets in, at 101, all three must agree; after it rounding sends searches apart.
    """
    network, record = load_network("stage-action-r2plus1d"), Stage("action", "test", seed=1)[1]
    pixels, config = record.clip.pixels[None], make_config("step", "released", (16, 112, 112), {})
    with untouched(network):
        about = network.log_probabilities, pixels, [record.label], [0], [0.1], config
        color = network.zero_color(pixels)
        ours = Descent(*about, outside=color)
        loop = PublishedLoop(network.log_probabilities, pixels, record.label, 0.1, color)
        lines = []
        for i in range(iterations):
            with torch.no_grad():
                m = loop.layout.margin
                theirs = loop.masks()[:, :, m:-m, m:-m]
            parts = ours.step()
            mean = float(parts["mean"])
            if i in DEMO_MEANS:
                both = torch.stack([parts["masks"].flatten(), theirs.flatten()])
                like = float(torch.corrcoef(both)[0, 1])
                lines.append(
                    f"iteration {i}: mean {mean:.3f} ours, {float(theirs.mean()):.3f} this loop, "
                    f"{DEMO_MEANS[i]:.3f} the demo; correlation of the masks {like:.4f}"
                )
                if i <= 100:
                    assert abs(mean - DEMO_MEANS[i]) < 0.002 and like > 0.999, lines[-1]
            for name, at in DEMO_TERMS:
                if i == at:
                    term, demo = float(ours.terms[name]), DEMO_TERMS[name, at]
                    lines.append(f"iteration {i}: {name} term {term:.2f} ours, {demo:.2f} the demo")
                    assert i > 101 or abs(term / demo - 1) < 0.01, lines[-1]
            loop.step()
    return lines


if __name__ == "__main__":
    check()
    print("masks and blend agree with the library's", *trajectory(), sep="\n")
