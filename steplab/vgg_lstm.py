"""The VGG-LSTM family: its ReLU-LSTM cell, VGG16LSTM at full size, what the narrow sibling shares."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def fold_time(
    x: Float[Tensor, "batch channel time height width"],
) -> Float[Tensor, "images channel height width"]:
    """Clips as images, batch-major, in channels-last memory: image `b*T + t` is frame t of clip b."""
    batch, channel, time, height, width = x.shape
    images = x.permute(0, 2, 3, 4, 1).reshape(batch * time, height, width, channel)
    return images.permute(0, 3, 1, 2)


class ReLULSTM(nn.Module):
    """One LSTM layer in which ReLU replaces tanh, for the candidate and for the output.

    With x the input, h the hidden and c the cell state, and every a = W x + b + U h:
    i, f, o = sigmoid(a_i, a_f, a_o), g = relu(a_g), c ← f·c + i·g, h ← o·relu(c).
    The only bias is the input branch's. Gate order in the rows of `x_branch` and `h_branch`: i, f, o, g.

    Nothing bounds the states (tanh is gone), so the recurrent weights start small. States are kept in the
    precision of the weights even under autocast: sixteen additions in bf16 would lose them.

    Args:
        inputs, hidden: sizes.
    """

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.x_branch = nn.Linear(inputs, 4 * hidden)
        self.h_branch = nn.Linear(hidden, 4 * hidden, bias=False)
        with torch.no_grad():
            for rows in self.x_branch.weight.chunk(4):
                nn.init.xavier_uniform_(rows)
            for rows in self.h_branch.weight.chunk(4):
                nn.init.orthogonal_(rows, gain=0.1)
            self.x_branch.bias.zero_()
            self.x_branch.bias[hidden : 2 * hidden] = 1.0  # remember until taught otherwise

    def forward(
        self, x: Float[Tensor, "batch time inputs"], detach_state: bool = False
    ) -> Float[Tensor, "batch time hidden"]:
        """Hidden states of all steps; `detach_state` blocks the gradient between steps."""
        with torch.autocast(x.device.type, enabled=False):
            branches = self.x_branch(x.to(self.x_branch.weight.dtype))
            h = branches.new_zeros(len(x), self.hidden)
            c = torch.zeros_like(h)
            steps = []
            for branch in branches.unbind(1):
                if detach_state:
                    h, c = h.detach(), c.detach()
                gates, candidate = (branch + self.h_branch(h)).split((3 * self.hidden, self.hidden), dim=1)
                i, f, o = torch.sigmoid(gates).chunk(3, dim=1)
                c = f * c + i * torch.relu(candidate)
                h = o * torch.relu(c)
                steps.append(h)
            return torch.stack(steps, dim=1)


class VGGLSTM(nn.Module):
    """Convolutions per frame, fc6, fc7, `ReLULSTM`, fc8; soft-max per step, averaged over time.

    The output is a **probability**: wrap it with `output="probability"`, apply no further soft-max, and train
    it on the negative log of the averaged probability.

    Args:
        features: from images to maps, flattened to `flat` numbers.
        fc: sizes of fc6 and fc7 (ReLU and dropout after each).
        hidden: size of the LSTM's states (dropout after them too).
        detach_state: block the gradient between time steps, in training mode only; an explanation always sees
            the whole gradient.
        plays: how often the clip is played to the LSTM; only the last play is answered. The published network
            plays once. Its first answers are then given before anything has happened, and their average over
            all steps stays below what the evidence deserves.

    Shapes: `batch x 3 x time x height x width`, normalised pixels → `batch x classes` in [0, 1].
    """

    def __init__(
        self,
        features: nn.Module,
        flat: int,
        fc: tuple[int, int],
        hidden: int,
        classes: int,
        dropout: float = 0.5,
        detach_state: bool = True,
        plays: int = 1,
    ):
        super().__init__()
        self.features = features
        self.fc6 = nn.Linear(flat, fc[0])
        self.fc7 = nn.Linear(fc[0], fc[1])
        self.lstm = ReLULSTM(fc[1], hidden)
        self.fc8 = nn.Linear(hidden, classes)
        self.relu6, self.relu7 = nn.ReLU(), nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.detach_state = detach_state
        self.plays = plays

    def step_logits(
        self, x: Float[Tensor, "batch 3 time height width"]
    ) -> Float[Tensor, "batch time classes"]:
        """Class scores of every step, before the soft-max."""
        maps = self.features(fold_time(x)).flatten(1)
        fc6 = self.dropout(self.relu6(self.fc6(maps)))
        fc7 = self.dropout(self.relu7(self.fc7(fc6)))
        steps = fc7.unflatten(0, (x.shape[0], x.shape[2])).repeat(1, self.plays, 1)
        h = self.lstm(steps, self.training and self.detach_state)[:, -x.shape[2] :]
        return self.fc8(self.dropout(h))

    def forward(self, x: Float[Tensor, "batch 3 time height width"]) -> Float[Tensor, "batch classes"]:
        return self.step_logits(x).softmax(dim=-1).mean(dim=1)


class VGG16LSTM(VGGLSTM):
    """VGG16LSTM (Bargal et al. 2018) at full size: VGG-16 at 224 px → fc7 (4096) → ReLU-LSTM (256) → fc8.

    139 million weights, untrained: it is the shape into which trained weights fit. The convolutions carry
    torchvision's names, so `network.features.load_state_dict` takes its VGG-16 features.

    Args:
        classes: number of outputs.

    Shapes: `batch x 3 x time x 224 x 224`, normalised pixels → `batch x classes` probabilities.
    """

    target_layer = "features.29"  # conv5_3 after its ReLU, a batch*time x 512 x 14 x 14 map

    def __init__(self, classes: int):
        layers: list[nn.Module] = []
        channels = 3
        for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        super().__init__(nn.Sequential(*layers), 512 * 7 * 7, (4096, 4096), 256, classes)
        self.settings = {"classes": classes}
