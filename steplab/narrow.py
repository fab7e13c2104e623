"""Narrow siblings of the paper's two network families, for 16 x 112 x 112 clips on a CPU.

Both keep a clip as `batch*time` images in channels-last memory. In that memory order a
`(1, k, k)` convolution is a 2-D one over images, and a `(k, 1, 1)` convolution is a `(k, 1)` one
over the view `batch x channels x time x (height*width)`, which costs no copy. On a CPU this is much
faster than small 3-D convolutions.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .vgg_lstm import VGGLSTM, fold_time


def unfold_time(x: Float[Tensor, "batch_time channel height width"], time: int) -> Tensor:
    """Inverse of `fold_time`: `batch x channel x time x height x width`."""
    images, channel, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(images // time, time, height, width, channel).permute(0, 4, 1, 2, 3)


class SpatialConv(nn.Conv2d):
    """A `(1, k, k)` convolution on folded clips, without bias (a batch norm follows)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class TemporalConv(nn.Conv2d):
    """A `(k, 1, 1)` convolution on the `rows` of folded clips, without bias; `images` folds them again."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__(
            inputs, outputs, (kernel, 1), stride=(stride, 1), padding=(kernel // 2, 0), bias=False
        )

    @staticmethod
    def rows(x: Float[Tensor, "batch_time channel height width"], time: int) -> Tensor:
        """Folded clips as `batch x channel x time x (height*width)`."""
        images, channel, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(images // time, time, height * width, channel)
        return rows.permute(0, 3, 1, 2)

    @staticmethod
    def images(rows: Float[Tensor, "batch channel time pixels"], height: int, width: int) -> Tensor:
        """Inverse of `rows`."""
        y = rows.permute(0, 2, 3, 1)
        return y.reshape(-1, height, width, y.shape[-1]).permute(0, 3, 1, 2)


def normed(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, x: Tensor) -> Tensor:
    """Convolution and batch norm; outside training in one, the norm's gain and shift moved to the weights."""
    if norm is None:
        return conv(x)
    if norm.training or norm.running_var is None or norm.running_mean is None:
        return norm(conv(x))
    gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv._conv_forward(
        x, conv.weight * gain[:, None, None, None], norm.bias - norm.running_mean * gain
    )


class FactoredConv(nn.Module):
    """(2+1)D convolution: space, norm, ReLU, time, norm; the caller applies the last ReLU.

    `linear=True` leaves out the inner norm and ReLU. The stem does so: at its resolution they would
    cost a quarter of the whole network's time.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        time_stride: int = 1,
        linear: bool = False,
    ):
        super().__init__()
        self.space = SpatialConv(inputs, outputs, kernel, stride)
        self.space_norm = None if linear else nn.BatchNorm2d(outputs)
        self.relu = (
            None if linear else nn.ReLU()
        )  # each ReLU a module of its own: guided backprop looks for them
        self.time = TemporalConv(outputs, outputs, 3, time_stride)
        self.time_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, time: int) -> Tensor:
        x = normed(self.space, self.space_norm, x)
        if self.relu is not None:
            x = self.relu(x)
        rows = normed(self.time, self.time_norm, self.time.rows(x, time))
        return self.time.images(rows, *x.shape[2:])


class ResidualBlock(nn.Module):
    """Two factored convolutions and a shortcut; strides act in the first one."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, time_stride: int = 1):
        super().__init__()
        self.time_stride = time_stride
        self.first = FactoredConv(inputs, outputs, 3, stride, time_stride)
        self.second = FactoredConv(outputs, outputs)
        self.first_relu, self.last_relu = nn.ReLU(), nn.ReLU()
        self.shortcut = None
        if inputs != outputs or stride != 1 or time_stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, time: int) -> tuple[Tensor, int]:
        kept = x
        if self.time_stride != 1:
            images = x.shape[0] // time
            kept = x.unflatten(0, (images, time))[:, :: self.time_stride].flatten(0, 1)
        if self.shortcut is not None:
            kept = normed(self.shortcut[0], self.shortcut[1], kept)  # type: ignore[arg-type]
        y = self.first_relu(self.first(x, time))
        time = -(-time // self.time_stride)
        return self.last_relu(self.second(y, time) + kept), time


class NarrowR2Plus1D(nn.Module):
    """A narrow R(2+1)D network: stem, four residual stages, global average, one linear layer `fc`.

    On 16 x 112 x 112 the stages work at 28, 14, 14 and 7 pixels and 16, 16, 8 and 4 frames, so the last map
    is `4·width x 4 x 7 x 7`. Its average over time, height and width makes the answer free of the place and,
    within the clip, of the moment.

    Args:
        classes: number of outputs.
        width: channels of the first stage; the others have 2, 3 and 4 times as many. To be trained, at
            least 8: with fewer the oneDNN of torch 2.14 writes beyond its buffers on CPUs without AVX-512
            (its issue 6035: gradient of the weights of 1 x 1 convolutions with a stride).

    Shapes: `batch x 3 x time x height x width`, normalised pixels → `batch x classes` logits.
    """

    target_layer = "last_map"

    def __init__(self, classes: int, width: int = 32):
        super().__init__()
        self.settings = {"classes": classes, "width": width}
        self.stem = FactoredConv(3, 16, kernel=5, stride=2, linear=True)
        self.stem_relu = nn.ReLU()
        self.stages = nn.ModuleList(
            [
                ResidualBlock(16, width, stride=2),
                ResidualBlock(width, 2 * width, stride=2),
                ResidualBlock(2 * width, 3 * width, time_stride=2),
                ResidualBlock(3 * width, 4 * width, stride=2, time_stride=2),
            ]
        )
        self.last_map = nn.Identity()  # where hooks find the last map in the order batch, channel, time, y, x
        self.fc = nn.Linear(4 * width, classes)
        initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)

    def features(self, x: Float[Tensor, "batch 3 time height width"]) -> Float[Tensor, "batch channel t h w"]:
        """The last feature map."""
        time = x.shape[2]
        x = self.stem_relu(self.stem(fold_time(x), time))
        for stage in self.stages:
            x, time = stage(x, time)
        return self.last_map(unfold_time(x, time))

    def forward(self, x: Float[Tensor, "batch 3 time height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.features(x).mean(dim=(2, 3, 4)))


class NarrowVGG16LSTM(VGGLSTM):
    """A narrow VGG16LSTM for 112 pixels: five VGG-like blocks per frame, 3 x 3 convolutions throughout.

    Differs from the full network, besides in width, by batch norm after each convolution (it trains in
    minutes instead of hours), by a first convolution of stride 2, by one or two convolutions in a block, by
    playing each clip twice (see `VGGLSTM`) and by training with gradients that cross time. The last max-pool
    covers the whole 7 x 7 map, so that the answer is free of the place: flattened as VGG does it, the map
    asks for each motion to be learnt at each place anew.

    Args:
        classes: number of outputs.
        width: channels of the first block; the others have 2, 4, 6 and 12 times as many.
        hidden: size of the LSTM's states.
        dropout: after fc6, fc7 and the LSTM.
    """

    def __init__(self, classes: int, width: int = 16, hidden: int = 96, dropout: float = 0.1):
        w = width
        features = narrow_vgg(((w,), (2 * w, 2 * w), (4 * w, 4 * w), (6 * w, 6 * w), (12 * w,)))
        super().__init__(features, 12 * w, (192, 128), hidden, classes, dropout, detach_state=False, plays=2)
        self.settings = {"classes": classes, "width": width, "hidden": hidden, "dropout": dropout}
        self.target_layer = f"features.{len(features) - 2}"  # conv5 after its ReLU, before the last pool
        for part in (self.features, self.fc6, self.fc7, self.fc8):  # the LSTM keeps its own start
            initialise(part)


def narrow_vgg(plan: Sequence[Sequence[int]]) -> nn.Sequential:
    """Blocks of 3 x 3 convolution, batch norm, ReLU, at 56, 28, 14, 7 and 7 pixels for a 112-pixel frame.

    A max-pool follows each block but the fourth; the first convolution's stride stands for that pool.
    """
    layers: list[nn.Module] = []
    channels = 3
    for number, block in enumerate(plan):
        for width in block:
            layers += [
                SpatialConv(channels, width, stride=1 if layers else 2),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        if number < len(plan) - 2:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.AdaptiveMaxPool2d(1))
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """He initialisation of convolutions and hidden linear layers."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.kaiming_uniform_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
