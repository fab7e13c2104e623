"""Other people's implementations at the same work, each beside ours in one run. For report.py.

Those that are not installed (extra `oracle`) are left out. Our integrated gradients and occlusion stand on
captum; what is compared there is what our door adds.
"""

import statistics
import time
import warnings

import torch
from overhead import median_ms
from torch import nn

import steplab as sl


def against_peers(rounds: int) -> list[tuple[str, str, float, float]]:
    """(work, peer, ms of ours, ms of theirs), each ending at a heat map or mask of the clip's size."""
    record = sl.Stage("action", split="test", seed=5)[0]
    network, target = sl.load_network("stage-action-r2plus1d"), record.label
    layer, size = network.module.last_map, record.clip.pixels.shape[1:]
    module = nn.Sequential(Normalised(network), network.module)
    pixels = record.clip.pixels[None]

    def ours(method: str, **more):
        return lambda: sl.explain(network, record.clip, target, method, (0.1,), progress=False, **more)

    def stretched(cam):
        return nn.functional.interpolate(cam, size=size, mode="trilinear")

    works = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import IntegratedGradients, LayerGradCam, Occlusion

        cam = LayerGradCam(module, layer)
        works.append(
            (
                "Grad-CAM",
                "captum",
                ours("grad-cam"),
                lambda: stretched(cam.attribute(pixels, target)).detach(),
            )
        )
        try:
            from torchcam.methods import GradCAM

            extractor = GradCAM(module, target_layer=layer)

            def theirs():
                scores = module(pixels.clone().requires_grad_())
                return stretched(extractor(target, scores)[0][None])

            works.append(("Grad-CAM", "torchcam", ours("grad-cam"), theirs))
        except ImportError:
            pass
        blurred = sl.perturb.blur(pixels, 20.0)
        path = IntegratedGradients(module)
        works.append(
            (
                "integrated gradients, 10 steps",
                "captum",
                ours("integrated-gradients", path_steps=10),
                lambda: path.attribute(
                    pixels, blurred, target, n_steps=10, method="riemann_middle", internal_batch_size=1
                ),
            )
        )
        window, step = (3, 8, 28, 28), (3, 8, 28, 28)
        occlusion = Occlusion(module)
        works.append(
            (
                "occlusion, 32 windows",
                "captum",
                ours("occlusion", blocks=(2, 4, 4), occlusion_steps=1),
                lambda: occlusion.attribute(pixels, window, step, blurred, target),
            )
        )
        found = [(what, peer, *median_ms(rounds, mine, other)) for what, peer, mine, other in works]
        found += extremal(max(rounds // 2, 2))
    return found


class Normalised(nn.Module):
    """A network's own preprocessing, as a layer."""

    def __init__(self, network: sl.Network):
        super().__init__()
        self.preprocess = network.preprocess

    def forward(self, pixels):
        return self.preprocess(pixels) if self.preprocess is not None else pixels


def extremal(rounds: int) -> list[tuple[str, str, float, float]]:
    """One mask of a single frame, 50 iterations, one small network: torchray's and preset `released`."""
    try:
        from torchray.attribution.extremal_perturbation import extremal_perturbation
    except ImportError:
        return []
    torch.manual_seed(0)
    small = nn.Sequential(
        nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 8),
    ).eval()  # fmt: skip
    frame = torch.rand(1, 3, 112, 112)

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.small = small

        def forward(self, pixels):
            return self.small(pixels[:, :, 0])

    network = sl.Network(Frames().eval(), [str(k) for k in range(8)], name="small")
    clip = sl.Clip(frame[0, :, None], torch.zeros(1), "frame")
    spent: list[list[float]] = [[], []]
    for _ in range(rounds):
        for row, work in zip(
            spent,
            (
                lambda: sl.explain(
                    network, clip, 0, "ep3d", (0.1,), "released", iterations=50, progress=False
                ),
                lambda: extremal_perturbation(small, frame, 0, areas=[0.1], max_iter=50, debug=False),
            ),
            strict=True,
        ):
            start = time.perf_counter()
            work()
            row.append(1000 * (time.perf_counter() - start))
    ours, theirs = map(statistics.median, spent)
    return [("extremal perturbation of one frame, 50 iterations", "torchray", ours, theirs)]
