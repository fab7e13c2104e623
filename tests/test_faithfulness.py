"""Measures that ask the network: closed forms, independent oracles, controls, and nothing left behind."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from steplab import faithfulness as fa
from steplab.metrics import interval
from steplab.narrow import NarrowR2Plus1D
from steplab.networks import Network

SIZE = (4, 6, 5)
N = 120


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(weights):
    """Probability of "yes": the weighted mean over colours, summed; linear in the pixels."""

    def fn(x):
        yes = (x.mean(1) * weights).flatten(1).sum(1)
        return torch.stack([yes, 1 - yes], 1)

    return Network(fn, ("yes", "no"), output="probability")


def deep(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = NarrowR2Plus1D(3, 4)
        nn.init.normal_(module.fc.weight)
    return Network(module.eval(), ("a", "b", "c"), target_layer="last_map")


def state(network):
    module = network.module
    tensors = [
        (t.data_ptr(), t.clone(), t.requires_grad, t.grad) for t in module.state_dict(keep_vars=True).values()
    ]
    return tensors, [(m.training, len(m._forward_hooks)) for m in module.modules()], torch.get_rng_state()


def assert_untouched(network, before):
    for (place, value, *flags), (place2, value2, *flags2) in zip(before[0], state(network)[0], strict=True):
        assert place == place2 and flags == flags2 and torch.equal(value, value2)
    assert before[1] == state(network)[1] and torch.equal(before[2], torch.get_rng_state())


def test_curves_of_a_linear_network_are_sums_in_the_order_of_heat():
    weights = torch.rand(SIZE, generator=numbers(), dtype=torch.float64) / N
    network, clip = linear(weights), torch.ones(3, *SIZE, dtype=torch.float64)
    best = weights.flatten().sort(descending=True).values
    sums = torch.cat([torch.zeros(1), best.cumsum(0)])[:: N // 20]
    come = fa.insertion(network, clip, weights, "yes", kind="fade-black")
    go = fa.deletion(network, clip, weights, "yes", kind="fade-black", batch=3)
    torch.testing.assert_close(come.ratios, torch.linspace(0, 1, 21, dtype=torch.float64))
    torch.testing.assert_close(come.probability, sums)
    torch.testing.assert_close(go.probability, weights.sum() - sums)
    torch.testing.assert_close(go.ratios, come.ratios)
    assert come.area == pytest.approx(float((sums[1:] + sums[:-1]).sum() / 40))
    worst = fa.insertion(network, clip, -weights, 0, kind="fade-black")
    chance = fa.insertion(network, clip, torch.rand(SIZE, generator=numbers(1)), 0, kind="fade-black")
    assert worst.area < chance.area < come.area


def test_one_voxel_comes_first_and_goes_first():
    weights = torch.zeros(SIZE)
    weights[2, 3, 1] = 1
    network, clip = linear(weights), torch.ones(3, *SIZE)
    come = fa.insertion(network, clip, weights, 0, steps=10, kind="fade-black")
    go = fa.deletion(network, clip, weights, 0, steps=10, kind="fade-black")
    assert come.probability.tolist() == [0] + [1] * 10 and go.probability.tolist() == [1] + [0] * 10
    assert come.area == pytest.approx(0.95) and go.area == pytest.approx(0.05)
    last = fa.deletion(network, clip, -weights, 0, steps=10, kind="fade-black")
    assert last.probability.tolist() == [1] * 10 + [0]
    tied = [
        fa.insertion(network, clip, weights * 0, 0, steps=10, kind="fade-black", seed=s).area
        for s in range(60)
    ]
    assert np.mean(tied) == pytest.approx(0.5, abs=0.12), "ties are broken at random"
    again = fa.insertion(network, clip, weights * 0, 0, steps=10, kind="fade-black", seed=7).area
    assert again == tied[7] and len(set(tied)) > 5


def test_a_random_map_inserts_as_it_deletes():
    weights = torch.rand(SIZE, generator=numbers()) / N
    clip = torch.rand(3, *SIZE, generator=numbers(1))
    areas = [
        [curve(linear(weights), clip, torch.rand(SIZE, generator=numbers(s)), 0).area for s in range(20)]
        for curve in (fa.insertion, fa.deletion)
    ]
    assert np.mean(areas[0]) == pytest.approx(np.mean(areas[1]), rel=0.02)


def test_curves_refuse_what_does_not_fit():
    network, clip = linear(torch.ones(SIZE)), torch.rand(3, *SIZE)
    with pytest.raises(ValueError, match=r"heatmap: got shape \(3, 6, 5\), expected \(4, 6, 5\)"):
        fa.insertion(network, clip, torch.zeros(3, 6, 5), 0)
    with pytest.raises(ValueError, match="heatmap: got NaN"):
        fa.deletion(network, clip, torch.full(SIZE, float("nan")), 0)
    with pytest.raises(ValueError, match="steps, batch: got 0, 8"):
        fa.deletion(network, clip, torch.zeros(SIZE), 0, steps=0)
    with pytest.raises(ValueError, match="no class 'maybe'"):
        fa.insertion(network, clip, torch.zeros(SIZE), "maybe")


def test_deletion_is_quantus_pixel_flipping(monkeypatch):
    quantus = pytest.importorskip("quantus")
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    torch.manual_seed(0)
    folded = nn.Sequential(nn.Flatten(), nn.Linear(N, 7), nn.ReLU(), nn.Linear(7, 2)).eval()
    network = Network(lambda x: folded(x.mean(1).flatten(1)), ("a", "b"))
    grey = torch.rand(2, 1, *SIZE, generator=numbers())
    grey[:, 0, 0, 0, 0] = 0  # their black is the image's darkest
    heat = torch.rand(2, *SIZE, generator=numbers(1))
    images, maps = (
        x.view(2, 1, SIZE[0] * SIZE[1], SIZE[2]).numpy() for x in (grey, heat)
    )  # frames in a column
    flip = quantus.PixelFlipping(6, normalise=False, perturb_baseline="black", disable_warnings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.array(flip(folded, images, np.array([0, 1]), maps))
    clips = grey.expand(2, 3, *SIZE)
    ours = [fa.deletion(network, clips[i], heat[i], i, kind="fade-black") for i in range(2)]
    assert theirs.shape == (2, 20) and np.ptp(theirs) > 0.01
    np.testing.assert_allclose(torch.stack([c.probability[1:] for c in ours]), theirs, atol=1e-6)
    first = [float(c.probability[:2].mean()) / 20 for c in ours]  # they leave out the whole clip
    areas = np.array([c.area for c in ours]) - first
    assert 20 * areas.mean() == pytest.approx(flip.get_auc_score, abs=1e-5)


@pytest.mark.parametrize(("kind", "expected"), [("ins", 0.756), ("del", 0.280)])
def test_areas_are_those_of_published_curves(shared, kind, expected):
    """Grad-CAM of an R(2+1)D-18 on all 910 test videos of UCF101-24, measured by others."""
    path = shared / "r2plus1d_ucf101_24_curves" / f"ucf101_r2p1d_{kind}_grad_cam_16.csv"
    rows = torch.from_numpy(pd.read_csv(path, index_col=0).to_numpy())
    assert rows.shape == (910, 129)
    areas = [fa.Curve(torch.linspace(0, 1, 129).double(), row).area for row in rows]
    assert interval(areas).mean == pytest.approx(expected, abs=0.002)


def test_similarity_is_spearmans_of_each_frame():
    stats = pytest.importorskip("scipy.stats")
    a = torch.randint(0, 6, (4, 9, 9), generator=numbers()).float()  # with ties
    b = a + torch.randint(0, 9, (4, 9, 9), generator=numbers(1))
    expected = np.mean(
        [stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    )
    assert 0.2 < fa.similarity(a, b) < 0.9 and fa.similarity(a, b) == pytest.approx(expected, abs=1e-12)
    assert fa.similarity(a, a.exp()) == pytest.approx(1) and fa.similarity(a, -a) == pytest.approx(-1)
    a[1], b[3] = 0.5, 0
    expected = np.mean([stats.spearmanr(a[t].flatten(), b[t].flatten()).statistic for t in (0, 2)])
    assert fa.similarity(a, b) == pytest.approx(expected, abs=1e-12), "constant frames say nothing"
    assert np.isnan(fa.similarity(a, torch.ones(4, 9, 9)))


def test_stability_is_the_mean_over_pairs():
    maps = [torch.rand(3, 5, 5, generator=numbers(s)) for s in range(3)]
    maps[2] = maps[2] + maps[1]
    pairs = [fa.similarity(maps[i], maps[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert fa.stability(maps) == pytest.approx(np.mean(pairs))
    assert fa.stability(torch.stack([maps[0]] * 4)) == pytest.approx(1)
    for wrong in (maps[:1], [maps[0], maps[1][:2]]):
        with pytest.raises(ValueError, match="heatmaps: got shapes"):
            fa.stability(wrong)
    with pytest.raises(ValueError, match="heatmaps: got NaN"):
        fa.similarity(maps[0], maps[1] / 0 * 0)


class Scale(nn.Module):
    """A layer that cannot draw itself anew."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 40) * 3 + 5)


def small():
    parts = [nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), Scale(), nn.Conv3d(4, 4, 1), nn.Linear(4, 2)]
    for part in parts:
        for p in part.parameters():
            nn.init.normal_(p, 5 if isinstance(part, Scale) else 0, 3)
    return Network(nn.Sequential(*parts), ("a", "b"), name="small")


def changed(network, other):
    pairs = zip(network.module.state_dict().items(), other.module.state_dict().values(), strict=True)
    return {key.split(".")[0] for (key, a), b in pairs if not torch.equal(a, b)}


def test_weights_are_drawn_anew_from_the_top_down():
    network = small()
    network.module.train()
    before = state(network)
    cascade = list(fa.randomised(network, 3))
    assert [name for name, _ in cascade] == ["5", "4", "3", "0"]
    assert [changed(network, other) for _, other in cascade] == [
        {"5"},
        {"5", "4"},
        {"5", "4", "3"},
        {"5", "4", "3", "1", "0"},
    ], "a normalisation goes with its layer"
    alone = list(fa.randomised(network, 3, cascading=False))
    assert [changed(network, other) for _, other in alone] == [{"5"}, {"4"}, {"3"}, {"0", "1"}]
    last = cascade[-1][1].module
    for (name, other), part in zip(alone, (5, 4, 3, 0), strict=True):
        for a, b in zip(other.module[part].parameters(), last[part].parameters(), strict=True):
            assert torch.equal(a, b), f"the new weights of {name} depend on nothing else"

    drawn = last[3].weight.detach()
    assert float(drawn.mean()) == pytest.approx(5, abs=0.5) and 2.5 < float(drawn.std()) < 3.5
    assert float(last[0].weight.detach().abs().max()) <= 81**-0.5, "as torch starts a convolution"
    assert [name for name, _ in fa.randomised(network, stops=2)] == ["5", "0"]
    assert [changed(network, other) for _, other in fa.randomised(network, stops=1)] == [set("01345")]
    assert not torch.equal(next(fa.randomised(network, 4))[1].module[5].weight, last[5].weight)
    assert last.training and cascade[-1][1].name == "small, 0 and above drawn anew (3)"
    assert_untouched(network, before)


def test_only_modules_with_weights_can_be_drawn_anew():
    for fn in (lambda x: x.flatten(1)[:, :2], nn.Sequential(nn.ReLU())):
        with pytest.raises(ValueError, match="network: .* expected one that does"):
            next(fa.randomised(Network(fn, ("a", "b"))))
    with pytest.raises(ValueError, match="stops: got 0"):
        next(fa.randomised(small(), stops=0))


def gradient_times_input(network, pixels):
    x = pixels[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[0, 0], x)
    return (gradient * x).sum(1)[0].detach()


def test_sensitivity_tells_what_was_learnt_from_habits():
    network, clip = deep(), torch.rand(3, 8, 32, 32, generator=numbers())
    network.module.train()  # as a user may have left it
    before = state(network)
    learnt = fa.sensitivity(network, clip, gradient_times_input, stops=4)
    assert next(iter(learnt)) == "fc" and list(learnt)[-1].startswith("stem")
    assert len(learnt) == 4 and abs(list(learnt.values())[-1]) < 0.1
    one = fa.sensitivity(network, clip, gradient_times_input, cascading=False, stops=1)
    assert abs(one["stem.space"]) < 0.2
    edges = fa.sensitivity(network, clip, lambda _, x: x.diff(dim=1, prepend=x[:, :1]).abs().sum(0), stops=4)
    assert list(edges.values()) == pytest.approx([1] * 4), "a map of the clip alone does not notice"
    assert_untouched(network, before)

    def fails(some, pixels):
        assert not some.module.training
        some.module.fc.weight.zero_()
        raise RuntimeError("no map")

    copies = copy.deepcopy(network.module.state_dict())
    with pytest.raises(RuntimeError, match="no map"):
        fa.sensitivity(network, clip, lambda some, x: fails(some, x) if some is not network else x.sum(0))
    assert all(torch.equal(a, copies[k]) for k, a in network.module.state_dict().items())
    fa.deletion(network, clip, clip.mean(0), "b", steps=2)
    assert_untouched(network, before)


def discs(network, pixels):
    """A random disc on the torus, seeded by the network's name: no habit."""
    rng = np.random.default_rng(int(network.name.split()[1]))
    time, height, width = pixels.shape[1:]
    t, y, x = (torch.arange(n) for n in (time, height, width))
    mask = ((y - height // 2)[:, None] ** 2 + (x - width // 2) ** 2 <= 36) & ((t < 3)[:, None, None])
    return mask.float().roll([int(rng.integers(n)) for n in (time, height, width)], (0, 1, 2))


def test_null_bias_finds_habits_and_leaves_chance_alone():
    size = (8, 28, 28)
    p = []
    for start in range(0, 400, 10):
        found = fa.null_bias(discs, size, range(start, start + 10), None, draws=200)
        p.append((found.border_p, found.frames_p))
    p = np.array(p)
    assert (np.abs(p.mean(0) - 0.5) < 0.15).all() and ((p < 0.05).mean(0) < 0.2).all(), (
        "p's of chance are uniform"
    )
    middle = torch.zeros(size)
    middle[3:5, 10:18, 10:18] = 1
    found = fa.null_bias(lambda network, x: middle + 0.1 * torch.rand(size), size)
    border = 1 - 22**2 / 28**2
    assert found.border_p == found.frames_p == 0
    assert -border < found.border < 0.1 - border + 0.3 and found.mean.shape == size
    assert found.frames[3] > 1.5 > 0.9 > found.frames[0] and float(found.frames.mean()) == pytest.approx(1)
    flat = fa.null_bias(lambda network, x: torch.zeros(size), size, range(8))
    assert (
        abs(flat.border) < 0.05
        and flat.border_p > 0.01
        and float(flat.mean.mean()) == pytest.approx(0.1, abs=1e-3)
    )


def test_null_bias_of_other_networks():
    """Their habits show: what they like by their build, and only in what they are shown."""
    size, asked = (4, 16, 16), []

    def build(seed):
        asked.append(seed)
        return Network(lambda x: x.flatten(1)[:, :2], ("one", "other"), name=f"corner {seed}")

    def gradient(network, pixels):
        x = pixels[None].clone().requires_grad_()
        network(x)[0, 0].backward()
        return x.grad[0].abs().sum(0)

    found = fa.null_bias(gradient, size, range(3), None, networks=build)
    assert asked == [0, 1, 2] and found.mean[0, 0, 0] > 0 and found.mean.flatten()[1:].sum() == 0
    assert found.frames.tolist() == [4, 0, 0, 0] and found.border > 0.2


def test_null_bias_refuses_maps_of_nothing():
    size = (4, 8, 8)
    for found, message in (
        (torch.zeros(size), "no heat"),
        (torch.full(size, -1.0), "negative"),
        (torch.full(size, float("nan")), "NaN"),
        (torch.ones(4, 8, 7), r"map of shape \(4, 8, 7\), expected \(4, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fa.null_bias(lambda network, x, found=found: found, size, range(2), None)
    with pytest.raises(ValueError, match="seeds: got none"):
        fa.null_bias(discs, size, [])
