"""R(2+1)D-18 at full size, torchvision's, as a network that can be trained, saved and loaded."""

from jaxtyping import Float
from torch import Tensor, nn


class R2Plus1D18(nn.Module):
    """torchvision's `r2plus1d_18` (Tran et al. 2018) with another number of outputs; no activation in place.

    31 million weights, untrained. Its last map is `512 x 2 x 7 x 7` for 16 frames of 112 px.

    Args:
        classes: number of outputs.

    Shapes: `batch x 3 x time x height x width`, normalised pixels → `batch x classes` logits.
    """

    target_layer = "net.layer4"

    def __init__(self, classes: int):
        from torchvision.models.video import r2plus1d_18  # heavy to import

        super().__init__()
        self.settings = {"classes": classes}
        self.net = r2plus1d_18(weights=None, num_classes=classes)
        for part in self.net.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = False  # hooks would see what it overwrites

    def forward(self, x: Float[Tensor, "batch 3 time height width"]) -> Float[Tensor, "batch classes"]:
        return self.net(x)
