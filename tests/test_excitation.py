"""Excitation backprop against matrices written out, against other implementations, and its conservation."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18, r3d_18, s3d

from steplab.excitation import excitation, recurrent_excitation
from steplab.layers import tap
from steplab.narrow import NarrowR2Plus1D
from steplab.networks import Network
from steplab.vgg_lstm import VGGLSTM, fold_time


def down(network: Network, pixels: Tensor, target: int, layer: str) -> Tensor:
    for p in network.module.parameters():
        p.requires_grad_(False)
    with tap(network, layer) as seen:
        return excitation(lambda: network(pixels), target, seen)


def as_network(module: nn.Module) -> Network:
    return Network(module.eval(), [str(k) for k in range(5)])


def small_cnn(n: int) -> nn.Sequential:
    """A plain CNN in 2 or 3 dimensions; layer 1 is the first ReLU."""
    torch.manual_seed(n)
    conv, most, mean = ((nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d), (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d))[
        n - 2
    ]
    return nn.Sequential(
        *(conv(3, 6, 3, padding=1), nn.ReLU(), most(2), conv(6, 8, 3, padding=1, bias=False), nn.ReLU()),
        *(mean(2), conv(8, 8, 1, stride=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 2**n, 5)),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", (2, 3))
def test_a_plain_cnn_is_as_torchrays_and_zennits(n):
    cnn = small_cnn(n).eval()
    x = torch.rand(1, 3, *[8] * n)
    ours = down(Network(cnn, [*"abcde"]), x, 2, "1") if n == 3 else None
    if n == 2:  # a network of pictures, so without the wrapper's checks
        with tap(Network(cnn, [*"abcde"]), "1") as seen:
            ours = excitation(lambda: cnn(x), 2, seen)
    assert ours is not None and abs(float(ours.sum()) - 1) < 1e-5
    excitation_backprop = pytest.importorskip("torchray.attribution.excitation_backprop").excitation_backprop
    theirs = excitation_backprop(cnn, x.clone(), 2, saliency_layer="1")
    torch.testing.assert_close(ours.sum(1), theirs[:, 0], rtol=1e-4, atol=1e-7)
    zennit = pytest.importorskip("zennit.composites")
    composite = zennit.ExcitationBackprop(stabilizer=1e-12, zero_params=["bias"])
    hidden = cnn[:2](x).detach().requires_grad_()
    with composite.context(cnn[2:]) as rest:
        (other,) = torch.autograd.grad(rest(hidden), hidden, torch.eye(5)[[2]])
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-7)


def without_bias(module: nn.Module) -> nn.Module:
    """Random batch norms of both signs, and no shifts: a shift alone could keep a share to itself."""
    torch.manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d):
            m.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                m.weight.copy_(
                    torch.where(torch.rand_like(m.weight) < 0.3, -1, 1) * (0.5 + torch.rand_like(m.weight))
                )
    return module


@pytest.mark.parametrize(
    "make, layers",
    [
        (lambda: r2plus1d_18(num_classes=5), ("layer4", "layer3", "layer1", "stem")),
        (lambda: r3d_18(num_classes=5), ("layer4", "layer2")),
        (lambda: s3d(num_classes=5), ("features", "features.11")),
        (lambda: NarrowR2Plus1D(5, 8), ("last_map", "stem_relu", "stages.0.first_relu")),
    ],
    ids=("r2plus1d_18", "r3d_18", "s3d", "narrow"),
)
def test_residual_and_normed_networks_conserve(make, layers):
    torch.manual_seed(0)
    network = as_network(without_bias(make()))
    size = (16, 64, 64) if network.module.__class__.__name__ == "S3D" else (8, 32, 32)
    pixels = torch.rand(1, 3, *size)
    if size[0] == 16:
        network.module.avgpool = nn.AdaptiveAvgPool3d(1)  # so that so small a clip will do
    for layer in layers:
        p = down(network, pixels, 3, layer)
        assert p.min() >= 0
        # a branch beside the layer takes its part
        assert float(p.sum()) == pytest.approx(1, abs=1e-3) or layer.endswith("first_relu"), layer


def test_batch_norm_counts_as_part_of_the_convolution():
    """The same p with the norm folded into the weights by hand."""
    torch.manual_seed(0)
    conv, norm = nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    ends = nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)
    apart = nn.Sequential(nn.Identity(), conv, norm, *ends).eval()
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
    x = torch.rand(1, 3, 5, 6, 6)
    a = down(as_network(apart), x, 1, "0")
    b = down(as_network(nn.Sequential(nn.Identity(), folded, *ends)), x, 1, "0")
    torch.testing.assert_close(a, b)


def positive_map(x: Tensor, weight: Tensor, p: Tensor) -> Tensor:
    """p'_j = x_j sum_i w+_ij p_i / (W+ x)_i for one vector, in loops."""
    w = weight.clamp(min=0)
    out = torch.zeros_like(x)
    for i in range(len(w)):
        z = (w[i] * x).sum()
        if z > 0:
            out += x * w[i] * p[i] / z
    return out


@pytest.mark.parametrize("plays", (1, 2))
def test_eb_r_is_what_the_matrices_say(plays):
    torch.manual_seed(3)
    features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveMaxPool2d(1))
    net = VGGLSTM(features, 4, (7, 6), 5, 3, plays=plays).double().eval()
    net.lstm.h_branch.weight.data *= 8
    net.lstm.x_branch.bias.data += 0.3  # so that not all of so few units are dead
    for layer in (net.fc6, net.fc7):  # a unit that its bias alone excites would keep its share
        layer.bias.data.zero_()
    for p in net.parameters():
        p.requires_grad_(False)
    clip, target, T = torch.rand(1, 3, 4, 9, 9).double(), 1, 4
    with tap(Network(net, [*"abc"], output="probability"), "features.1") as seen:
        ours = recurrent_excitation(net, clip, target, seen)

    conv5 = features[:2](fold_time(clip))
    flat = conv5.amax((2, 3))
    fc6 = torch.relu(net.fc6(flat))
    fc7 = torch.relu(net.fc7(fc6))
    n, steps = plays * T, []
    h, c = torch.zeros(5).double(), torch.zeros(5).double()
    for t in range(n):
        a = net.lstm.x_branch.weight @ fc7[t % T] + net.lstm.x_branch.bias + net.lstm.h_branch.weight @ h
        i, f, o = torch.sigmoid(a[:15]).chunk(3)
        g, before = torch.relu(a[15:]), c
        c = f * before + i * g
        h = o * torch.relu(c)
        steps.append({"i": i, "f": f, "o": o, "g": g, "before": before, "c": c, "h": h})
    answers = [(net.fc8.weight @ s["h"] + net.fc8.bias).softmax(0)[target] for s in steps[-T:]]
    p7, carried = torch.zeros_like(fc7), torch.zeros(5).double()
    for t in reversed(range(n)):
        s, p_h = steps[t], torch.zeros(5).double()
        if t >= n - T:
            one = torch.zeros(3).double()
            one[target] = answers[t - n + T] / sum(answers)
            p_h = positive_map(s["h"], net.fc8.weight, one)
        p_c = carried + p_h * s["o"] * (s["c"] > 0)
        gates = (
            p_c * s["g"] * s["i"] * (1 - s["i"]),
            p_c * s["before"] * s["f"] * (1 - s["f"]),
            p_h * s["c"] * s["o"] * (1 - s["o"]),
            p_c * s["i"] * (s["g"] > 0),
        )
        p7[t % T] += positive_map(fc7[t % T], net.lstm.x_branch.weight, torch.cat(gates))
        carried = p_c * s["f"]
    p7 /= p7.sum()
    expected = torch.zeros_like(conv5)
    for t in range(T):
        p6 = positive_map(fc6[t], net.fc7.weight, p7[t])
        p5 = positive_map(flat[t], net.fc6.weight, p6)
        for k in range(4):  # max-pool: to the largest
            expected[t, k].view(-1)[conv5[t, k].argmax()] = p5[k]
    torch.testing.assert_close(ours, expected)
    assert len({round(float(v), 6) for v in p7.sum(1)}) == T, "the frames differ"
    assert float(ours.sum()) == pytest.approx(1, abs=1e-6)


def test_inputs_below_zero_excite_through_negative_weights():
    torch.manual_seed(0)
    network = as_network(nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(24, 5)))
    x = torch.randn(1, 3, 2, 2, 2)
    p = down(network, x, 4, "0")
    excited = (x.flatten() * network.module[2].weight[4]).clamp(min=0)
    torch.testing.assert_close(p.flatten(), excited / excited.sum())


def test_operations_without_a_rule_are_refused():
    network = as_network(
        nn.Sequential(nn.Conv3d(3, 5, 3), nn.Sigmoid(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    )
    with pytest.raises(ValueError, match="no rule for 'sigmoid'.*grad-cam"):
        down(network, torch.rand(1, 3, 4, 8, 8), 0, "0")
