"""What the search is after and what it finds: log-odds, ratios that hold, variants, failures said aloud."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_explain import SIZE, pattern_network, spotted_clip
from torch import nn

from steplab.clips import Clip
from steplab.config import METHODS, make_config
from steplab.engine import Descent
from steplab.explain import explain, smallest_ratio
from steplab.losses import log_odds
from steplab.masks import MaskGenerator
from steplab.networks import Affine, Network, load_network
from steplab.perturb import Perturbation, blur
from steplab.stage import Stage

LESSON = {"preset": "lesson", "progress": False}


pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------------- log-odds


def literal_odds(logits, target, others):
    """Logit less the log of the sum of the others' exponentials, in double precision."""
    z = logits.double()
    return z[target] - torch.stack([z[k] for k in others]).logsumexp(0)


def test_log_odds_are_the_logit_less_all_others_together():
    logits = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    found = log_odds(logits.log_softmax(1), targets)
    expected = [
        literal_odds(z, t, [k for k in range(4) if k != t])
        for z, t in zip(logits, targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    p = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, torch.logit(p))
    rows = targets != 3
    against = log_odds(logits[rows].log_softmax(1), targets[rows], 3)
    torch.testing.assert_close(against, logits[rows, targets[rows]] - logits[rows, 3])


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("against", [None, 0, 1, 2])
def test_log_odds_of_logits_of_60_are_exact_in_single_precision(target, against):
    """There a probability rounds to 1 and its rest to 0."""
    if against == target:
        pytest.skip("refused")
    others = [k for k in range(3) if k != target] if against is None else [against]
    values = []
    for kind in (torch.float32, torch.float64):
        logits = torch.tensor([[60.0, -60.0, 1.5]], dtype=kind, requires_grad=True)
        if kind == torch.float32:
            found = log_odds(logits.log_softmax(1), torch.tensor([target]), against)[0]
        else:
            found = literal_odds(logits[0], target, others)
        (slope,) = torch.autograd.grad(found, logits)
        values.append((found.double(), slope.double()))
    (found, slope), (expected, right) = values
    assert torch.isfinite(slope).all() and slope[0, target] > 0.99
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope, right, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("p", [(0.0, 0.6, 0.4), (1.0, 0.0, 0.0), (1e-8, 1.0, 0.0), (0.7, 0.2, 0.1)])
@pytest.mark.parametrize("against", [None, 1])
def test_log_odds_of_probabilities_have_a_gradient_even_at_0_and_1(p, against):
    """Scores that are probabilities already: what rounds to 0 still says where to go."""
    center, slopes = torch.tensor(p), torch.tensor([1.0, -0.5, -0.5])

    def scores(x):
        mean = x.mean((1, 2, 3, 4))[:, None]
        return center + slopes * (mean - mean.detach())

    network = Network(scores, ("a", "b", "c"), output="probability")
    pixels = torch.full((1, 3, 4, 8, 8), 0.5, requires_grad=True)
    found = log_odds(network.log_probabilities(pixels), torch.tensor([0]), against)
    (slope,) = torch.autograd.grad(found.sum(), pixels)
    assert torch.isfinite(found).all() and torch.isfinite(slope).all() and (slope > 0).all()
    others = p[1] + p[2] if against is None else p[1]
    if min(p[0], others) > 0:
        assert float(found.detach()) == pytest.approx(np.log(p[0] / others), rel=1e-5)
    elif p[0] == 0:
        assert -70 < float(found.detach()) < -60
    else:
        assert 60 < float(found.detach()) < 70


def test_of_a_single_class_there_are_no_odds():
    log_p = torch.zeros(2, 1, requires_grad=True)
    found = log_odds(log_p, torch.tensor([0, 0]))
    assert found.tolist() == [0, 0]
    (slope,) = torch.autograd.grad(found.sum(), log_p)
    assert slope.tolist() == [[1], [1]]
    only = Network(lambda x: x.mean((1, 2, 3, 4))[:, None], ("all",))
    result = explain(only, torch.rand(3, 4, 28, 28), 0, "ep3d", (0.2,), "smoke", progress=False)
    assert result.probability.tolist() == [1] and torch.isfinite(result.masks).all()


def random_network(scale=1.0, classes=3):
    """A small convolutional network, its logits multiplied by `scale`."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        module = nn.Sequential(
            nn.Conv3d(3, 8, 5, stride=(1, 3, 3), padding=2),
            nn.ReLU(),
            nn.Conv3d(8, 8, 3, padding=1),
            nn.ReLU(),
        )
        head = nn.Sequential(nn.AdaptiveAvgPool3d((3, 4, 4)), nn.Flatten(), nn.Linear(8 * 48, classes))
        module = nn.Sequential(module, head).eval()
    with torch.no_grad():
        module[1][2].weight.mul_(20)
    return Network(lambda x: scale * module(x), tuple("abcdef"[:classes]))


@pytest.mark.parametrize("which", ["pattern", "random"])
def test_the_scale_of_the_logits_does_not_matter(which):
    """One network, its logits times .1, 1 and 10: the same masks, though log Phi would weigh them anew."""
    clip, _ = spotted_clip()
    plain = pattern_network() if which == "pattern" else random_network(classes=2)
    found = {}
    for scale in (0.1, 1.0, 10.0):
        network = Network(lambda x, scale=scale: scale * plain(x), plain.classes)
        found[scale] = explain(network, clip, 0, "ep3d", (0.1,), **LESSON).masks
    show = Perturbation(clip.pixels[None])
    with torch.no_grad():
        p = {s: float(plain.probabilities(show(m))[0, 0]) for s, m in found.items()}
    for scale in (0.1, 10.0):
        a, b = found[scale] > 0.5, found[1.0] > 0.5
        assert (a & b).sum() / (a | b).sum() >= 0.9, scale
        assert abs(p[scale] - p[1.0]) <= 0.02, p


# ---------------------------------------------------------------------------------------- ratios that hold


@pytest.mark.parametrize("method", METHODS)
def test_every_mask_is_as_large_as_its_ratio_and_p_is_what_the_network_says_of_it(method):
    network, ratios = random_network(), (0.05, 0.2)
    clip = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2))
    result = explain(network, clip, 1, method, ratios, **LESSON)
    for mask, ratio in zip(result.masks, ratios, strict=True):
        assert 0.97 * ratio <= mask.mean() <= ratio
        if method == "ep3d-evenly":
            assert (mask.mean((1, 2)) >= 0.97 * ratio).all() and (mask.mean((1, 2)) <= 1.005 * ratio).all()
    assert (result.history["probability"][:, -1] == result.probability.numpy()).all()
    show = Perturbation(clip[None])
    with torch.no_grad():
        said = torch.cat([network.probabilities(show(mask[None])) for mask in result.masks])[:, 1]
    torch.testing.assert_close(result.probability, said, rtol=1e-4, atol=1e-6)
    assert result.masks.std() > 0.1


@pytest.mark.parametrize("boundary", ["crop", "padded"])
def test_a_mask_is_as_large_as_its_ratio_whatever_lies_outside_of_the_frame(boundary):
    clip = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2))
    result = explain(random_network(), clip, 1, "ep3d", (0.05, 0.2), boundary=boundary, **LESSON)
    means = result.masks.mean((1, 2, 3)) / torch.tensor(result.ratios)
    assert (means >= 0.97).all() and (means <= 1).all(), means


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_step_meets_the_ratio_and_moves_no_seed_further_than_the_rate(per_frame):
    """Where the ratio can be met within the rate; seeds of more gain for their cost are lit first."""
    ask = {"per_frame": per_frame, "shrink": 0, "momentum": 0.0}
    config = make_config("ep3d", "lesson", (4, 56, 56), ask)
    start = torch.full((1, 4, 8, 8), 0.5)
    pixels = torch.rand(1, 3, 4, 56, 56, generator=torch.Generator().manual_seed(0))
    descent = Descent(lambda x: x, pixels, [0], [0], [0.5], config, start)
    masks = descent.draw(descent.seeds)[1].detach()
    descent.ratios = [0.98 * float(masks.mean())]
    gradient = -torch.rand(start.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    descent.iteration = 1
    seeds = descent.spend(gradient, masks)
    rate = config.learning_rate * config.cooling ** (1 / config.iterations)
    moved = seeds - start
    assert moved.abs().max() <= rate + 1e-6 and moved.max() > 0.2 * rate and moved.min() < -0.2 * rate
    drawn = descent.draw(seeds)[1].mean((2, 3) if per_frame else (1, 2, 3))
    assert ((drawn / descent.ratios[0] - 1).abs() < 0.02).all()
    gain = -gradient.flatten(2)
    for frame in range(4) if per_frame else [slice(None)]:  # all cost the same here
        order = gain[:, frame].flatten().argsort()
        assert (moved[:, frame].flatten()[order].diff() >= -1e-5).all()


def test_a_ratio_too_far_to_reach_in_a_step_is_met_by_lowering_all_seeds_alike():
    config = make_config("ep3d", "lesson", (4, 56, 56), {"shrink": 0, "learning_rate": 0.01})
    start = 0.4 + 0.6 * torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    descent = Descent(lambda x: x, torch.rand(1, 3, 4, 56, 56), [0], [0], [0.3], config, start)
    descent.iteration = 1
    masks = descent.draw(descent.seeds)[1].detach()
    seeds = descent.spend(torch.zeros_like(start), masks)
    fell = (start - seeds)[seeds > 0]
    assert fell.min() > 0.02 and fell.max() - fell.min() < 0.021
    assert 0.85 * 0.3 < float(descent.draw(seeds)[1].mean()) < 1.15 * 0.3 < 0.8 * float(masks.mean())


# ------------------------------------------------------------------------------------------------ variants

FRAME = (4, 42, 42)


def place(rows, columns):
    mask = torch.zeros(FRAME)
    mask[:, rows : rows + 14, columns : columns + 14] = 1
    return mask


HERE, THERE = place(0, 0), place(21, 21)
SHARE = float(HERE.mean())
CHECKS = torch.arange(42)[:, None].add(torch.arange(42)).remainder(2) * 0.8 - 0.4
TWO_PLACES = 0.5 + CHECKS * (HERE + THERE).expand(3, *FRAME)


def there_is(pixels, where):
    """1 where all of the fine pattern is to be seen, 0 where it is blurred."""
    weights = CHECKS * where
    return ((pixels - 0.5) * weights).sum((1, 2, 3, 4)) / (3 * (weights * CHECKS).sum())


def logic(kind):
    """A network that wants the pattern in one place or the other, or in both."""

    def logits(pixels):
        a, b = 8 * there_is(pixels, HERE), 8 * there_is(pixels, THERE)
        z = torch.logaddexp(a, b) - 4 if kind == "or" else -torch.logaddexp(-a, -b) - 4
        return torch.stack([z, 0 * z], 1)

    return Network(logits, ("there", "not"), name=kind)


def within(mask, where):
    return float((mask * where).sum() / where.sum())


@pytest.mark.parametrize(
    "kind, variant, places",
    [
        ("or", "preserve", 1),
        ("or", "delete", 2),
        ("or", "dual", 2),
        ("and", "preserve", 2),
        ("and", "delete", 1),
        ("and", "dual", 2),
    ],
)
def test_what_is_enough_and_what_is_needed_differ(kind, variant, places):
    """Of "a or b" one is enough and both must go; of "a and b" both are needed and one may go."""
    network = logic(kind)
    ratio = 1.3 * places * SHARE
    result = explain(network, TWO_PLACES, 0, "ep3d", (ratio,), variant=variant, **LESSON)
    (mask,) = result.masks
    few, much = sorted((within(mask, HERE), within(mask, THERE)))
    assert result.original > 0.9 and result.config.variant == variant
    assert 0.94 * ratio <= mask.mean() <= ratio
    assert (few < 0.35 if places == 1 else few > 0.7) and much > 0.7, (few, much)
    show = Perturbation(TWO_PLACES[None])
    with torch.no_grad():
        kept, left = (float(network.probabilities(show(m[None]))[0, 0]) for m in (mask, 1 - mask))
    assert float(result.probability) == pytest.approx(left if variant == "delete" else kept, abs=1e-4)
    assert variant == "delete" or kept > 0.5
    assert variant == "preserve" or left < 0.5
    assert result.enough == (True,)


def test_enough_of_a_deletion_is_that_little_is_left():
    result = explain(logic("or"), TWO_PLACES, 0, "ep3d", (SHARE,), variant="delete", **LESSON)
    assert float(result.probability) > 0.5 * result.original and result.enough == (False,)
    assert result.caption(0) == f"remove 11.1 %\np = {float(result.probability):.2f}\nnot enough"
    (said,) = result.remarks()
    share = f"{100 * float(result.probability) / result.original:.1f}".removesuffix(".0")
    assert said.startswith(f"11.1 % of the clip leaves {share} % of the answer: ")
    assert said.endswith(f"try {2 * SHARE:g}.")


def test_the_smallest_ratio_of_or_and_of_and_are_opposite():
    ask = {"method": "ep3d", "tolerance": 0.02, "iterations": 20, "shrink": 10, **LESSON}
    found = {
        (kind, variant): smallest_ratio(
            logic(kind), TWO_PLACES, 0, variant=variant, threshold=threshold, **ask
        )
        for kind in ("or", "and")
        for variant, threshold in (("preserve", 0.5), ("delete", None))
    }
    ratio = {key: one.ratio for key, one in found.items()}
    assert 1.4 < ratio["or", "delete"] / ratio["or", "preserve"] < 3, ratio
    assert 1.4 < ratio["and", "preserve"] / ratio["and", "delete"] < 3, ratio
    for (kind, variant), one in found.items():
        shown = one.mask if variant == "preserve" else 1 - one.mask
        with torch.no_grad():
            p = float(logic(kind).probabilities(Perturbation(TWO_PLACES[None])(shown[None]))[0, 0])
        assert one.probability == pytest.approx(p, abs=1e-4)
        held = [(p <= one.threshold) == (variant == "delete") or p == one.threshold for _, p in one.tried]
        assert one.ratio == min(v for (v, _), h in zip(one.tried, held, strict=True) if h)
    whole = explain(logic("or"), TWO_PLACES, 0, "ep3d", (0.5,), "smoke", progress=False).original
    assert found["or", "delete"].threshold == pytest.approx(whole / 2)


def test_the_smallest_ratio_of_both_at_once_is_the_larger_of_the_two():
    ask = {"method": "ep3d", "tolerance": 0.02, "iterations": 20, "shrink": 10, **LESSON}
    found = smallest_ratio(logic("or"), TWO_PLACES, 0, variant="dual", threshold=0.5, **ask)
    show = Perturbation(TWO_PLACES[None])
    with torch.no_grad():
        p = [float(logic("or").probabilities(show(m[None]))[0, 0]) for m in (found.mask, 1 - found.mask)]
    assert found.probability == pytest.approx(p[0], abs=1e-4) and p[0] >= 0.5 and p[1] <= 0.5
    assert within(found.mask, HERE) > 0.3 and within(found.mask, THERE) > 0.3, "both must go"


def three_classes():
    """Class a needs the pattern here and there, b only here: what tells them apart is there."""

    def logits(pixels):
        shared, own = there_is(pixels, HERE), there_is(pixels, THERE)
        return torch.stack([8 * shared + 2 * own - 4, 8 * shared - 4, 0 * own], 1)

    return Network(logits, ("a", "b", "c"))


@pytest.mark.parametrize("reward", ["log-odds", "log", "probability"])
def test_against_another_class_the_mask_lies_where_the_two_differ(reward):
    ask = {**LESSON, "method": "ep3d", "ratios": (SHARE,), "reward": reward}
    why = explain(three_classes(), TWO_PLACES, "a", **ask).masks[0]
    assert within(why, HERE) > 0.5 > within(why, THERE)
    if reward == "probability":
        return
    rather = explain(three_classes(), TWO_PLACES, "a", against="b", **ask)
    assert within(rather.masks[0], THERE) > 0.5 > within(rather.masks[0], HERE)
    again = explain(three_classes(), TWO_PLACES, "a", against=1, **ask)
    assert torch.equal(again.masks, rather.masks)


def test_against_a_class_the_reward_is_the_difference_of_the_two():
    network, half = three_classes(), torch.full((1, *FRAME), 0.5)
    with torch.no_grad():
        p = network.probabilities(Perturbation(TWO_PLACES[None])(half))[0]
    expected = {"log-odds": (p[0] / p[1]).log(), "log": (p[0] / p[1]).log(), "probability": p[0] - p[1]}
    for reward, value in expected.items():
        config = make_config("ep3d", "lesson", FRAME, {"reward": reward})
        descent = Descent(network.log_probabilities, TWO_PLACES[None], [0], [0], [0.1], config, against=1)
        log_p, found = descent.answer(half)
        torch.testing.assert_close(found, value[None], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(log_p.exp(), p[:1], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="against: expected a class that is not explained, got 0"):
        explain(network, [TWO_PLACES, TWO_PLACES], [1, 0], "ep3d", (0.1,), against=0, **LESSON)


# ------------------------------------------------------------------------------------- failure said aloud


@pytest.fixture(scope="module")
def failing():
    clip, _ = spotted_clip()
    return explain(pattern_network(), clip, ratios=(0.004, 0.01, 0.1), method="ep3d", **LESSON)


def test_masks_that_are_not_enough_are_named_with_a_ratio_to_try(failing):
    result = failing
    assert result.enough == (False, False, True) and result.original > 0.95
    shares = [f"{100 * float(p) / result.original:.1f}".removesuffix(".0") for p in result.probability]
    first, second = result.remarks()
    said = "of the answer: at this ratio nothing was found that is enough; try"
    assert first == f"0.4 % of the clip keeps {shares[0]} % {said} 0.1."
    assert second == f"1 % of the clip keeps {shares[1]} % {said} 0.1."
    assert result.caption(1) == f"keep 1 %\np = {float(result.probability[1]):.2f}\nnot enough"
    assert result.caption(2) == f"keep 10 %\np = {float(result.probability[2]):.2f}"
    words = [t.get_text() for t in result.filmstrip().texts]
    assert [w for w in words if w.startswith("keep")] == [result.caption(k) for k in (2, 0, 1)]
    one = {name: getattr(result, name)[:1] for name in ("masks", "probability", "ratios", "converged")}
    alone = replace(result, **one, history={k: v[:1] for k, v in result.history.items()})
    assert alone.remarks()[0].endswith("try 0.008."), "twice as much where nothing larger was tried"
    assert replace(alone, ratios=(0.6,)).remarks()[0].endswith("try 0.9."), "but no more than .9"
    half = torch.full_like(alone.probability, result.original / 2)
    just, less = replace(alone, probability=half), replace(alone, probability=half - 1e-3)
    assert just.enough == (True,) and not just.remarks() and less.enough == (False,)


def test_an_unsure_network_is_called_unsure(failing):
    result = failing
    assert not any("unsure" in words for words in result.remarks())
    unsure = replace(result, original=0.19, probability=torch.tensor([0.01, 0.1, 0.15]))
    assert unsure.enough == (False, True, True)
    remarks = unsure.remarks()
    assert remarks[0] == "The network itself is unsure: p = 0.19 for the whole clip." and len(remarks) == 2
    for one in (unsure, result):
        titles = [t.get_text() for t in one.filmstrip().texts if t.get_text().startswith("“pattern”")]
        assert len(titles) == 1 and titles[0].endswith(": the network is unsure") == (one is unsure)
    assert not any("unsure" in words for words in replace(unsure, original=0.2).remarks())


def test_until_enough_the_first_ratio_that_is_enough_is_the_last():
    clip, _ = spotted_clip()
    ask = {**LESSON, "ratios": (0.01, 0.1, 0.2, 0.3), "method": "ep3d"}
    whole = explain(pattern_network(), clip, 0, **ask)
    assert whole.enough == (False, True, True, True)
    twin = Clip(0.5 + 0.6 * (clip.pixels - 0.5), clip.times, "fainter")
    result, other = explain(pattern_network(), [clip, twin], 0, until_enough=True, max_batch=4, **ask)
    assert result.ratios == (0.01, 0.1) and result.enough == (False, True) and not result.interrupted
    assert torch.equal(result.masks, whole.masks[:2]), "those there are are the same"
    assert torch.equal(result.probability, whole.probability[:2])
    assert other.enough[-1] and not any(other.enough[:-1]), "each clip for itself"


# ---------------------------------------------------------------------------------------------- published


def test_published_masks_start_at_exactly_1_whatever_the_seed():
    for method in METHODS:
        config = make_config(method, "released", (8, 28, 28), {})
        for seed in (0, 1):
            pixels = torch.rand(1, 3, 8, 28, 28)
            descent = Descent(lambda x: x, pixels, [0], [0, 0], [0.1, 0.2], config, seed=seed)
            assert (descent.seeds == 1).all()


def test_published_steps_are_those_of_torchs_sgd():
    """The first step is not dampened, all others are."""
    config = make_config("ep3d", "released", (8, 28, 28), {})
    assert (config.learning_rate, config.momentum, config.dampening) == (0.05, 0.9, 0.9)
    descent = Descent(lambda x: x, torch.rand(1, 3, 8, 28, 28), [0], [0, 0], [0.1, 0.2], config)
    theirs = descent.seeds.detach().clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], lr=0.05, momentum=0.9, dampening=0.9)
    numbers = torch.Generator().manual_seed(0)
    descent._differentiate = lambda: ({}, gradient)
    for k in range(8):
        gradient = torch.randn(theirs.shape, generator=numbers) + (k < 2)
        theirs.grad = gradient.clone()
        sgd.step()
        with torch.no_grad():
            theirs.clamp_(0, 1)
        descent.step()
        torch.testing.assert_close(descent.seeds, theirs, rtol=0, atol=1e-6)
        if k == 0:
            torch.testing.assert_close(1 - descent.seeds.detach(), (0.05 * gradient).clamp(0, 1))
    assert descent.seeds.std() > 0.05


def test_the_color_that_preprocessing_makes_0():
    def color(preprocess):
        return Network(lambda x: x.mean((3, 4))[:, :, 0], ("a", "b", "c"), preprocess).zero_color(
            torch.rand(2, 3, 4, 20, 20)
        )

    assert color(Affine((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))) == pytest.approx((0.4, 0.5, 0.6))
    assert color(Affine((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), size=10)) == pytest.approx((0.4, 0.5, 0.6))
    assert color(lambda x: 255 * x - 100) == pytest.approx((100 / 255,) * 3)
    for other in (
        None,
        lambda x: x,
        lambda x: x.mean(),
        lambda x: x - x.mean(),
        lambda x: x[0],
        lambda x: x / 0,
        lambda x: x.sqrt() - 0.5,
    ):
        assert color(other) == (0, 0, 0)
    mean = torch.tensor([0.4, 0.5, 0.6])[:, None, None, None]
    for layout in (
        lambda x: (x - mean).flip(1),
        lambda x: (x - mean).transpose(1, 2),
        lambda x: (x - mean).half(),
    ):
        assert color(layout) == pytest.approx((0.4, 0.5, 0.6), abs=1e-3), "whatever comes after"
    assert color(Affine((-0.5, 0.5, 1.5), (1.0, 1.0, 1.0))) == (0, 0.5, 1), "a color that can be shown"


def test_the_published_pyramid_pads_with_the_color_that_preprocessing_makes_0():
    """As zeros after normalization; the perturbed clip is the same but for the order of the two."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normal = Affine(mean, std)
    pixels = torch.rand(2, 3, 4, 20, 24, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(2, 4, 20, 24, generator=torch.Generator().manual_seed(1))
    found = normal(Perturbation(pixels, "pyramid", 3.0, mean)(masks))
    levels = torch.stack([blur(normal(pixels), 3 * (1 - i / 7), "zero") for i in range(7)] + [normal(pixels)])
    place = (7 * masks).clamp(max=6.999)
    low = place.long()
    part = (place - low)[:, None]
    index = low[None, :, None].expand(1, -1, 3, -1, -1, -1)
    expected = levels.gather(0, index)[0] * (1 - part) + levels.gather(0, index + 1)[0] * part
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    black = normal(Perturbation(pixels, "pyramid", 3.0)(masks))
    assert (black - expected).abs().max() > 0.1
    for kind in ("blur", "fade-mean", "fade-black"):
        one, other = (Perturbation(pixels, kind, 3.0, color)(masks) for color in (mean, (0.0, 0.0, 0.0)))
        assert torch.equal(one, other), "others have nothing outside"


def test_the_networks_color_reaches_the_published_search():
    """One step of it on a clip of that color: nothing fades, so that the network sees the same everywhere."""
    seen = []

    def scores(x):
        seen.append(x.detach())
        return x.mean((3, 4))[:, :, 0]

    mean = (0.4, 0.5, 0.6)
    network = Network(scores, ("a", "b", "c"), Affine(mean, (0.2, 0.3, 0.4)), size=28)
    clip = torch.tensor(mean)[:, None, None, None].expand(3, 8, 28, 28).clone()
    explain(network, clip, 0, "ep3d", (0.3,), "released", progress=False, iterations=20, learning_rate=1.0)
    assert len(seen) > 20 and all(x.abs().max() < 1e-4 for x in seen)


def test_the_published_core_term_sets_in_at_iteration_101():
    states = []
    clip = torch.rand(3, 7, 14, 14, generator=torch.Generator().manual_seed(0))
    network = Network(lambda x: x.mean((3, 4))[:, :, 0], ("a", "b", "c"))
    ask = {"ratios": (0.1,), "preset": "released", "iterations": 103, "progress": False}
    explain(network, clip, 0, "step", callback=states.append, callback_every=1, **ask)
    with_core = ["core" in state.terms for state in states]  # counted from 0
    assert with_core == [False] * 101 + [True] * 2


def test_the_published_search_is_where_the_demo_itself_was():
    """Measured of the authors' demo on this clip: the visible mask's mean and the weighted area term."""
    network, record = load_network("stage-action-r2plus1d"), Stage("action", "test", seed=1)[1]
    states = []
    ask = {"callback": states.append, "callback_every": 1, "iterations": 21, "progress": False}
    explain(network, record.clip, record.label, "step", (0.1,), "released", **ask)
    assert float(states[20].masks.mean()) == pytest.approx(0.883, abs=1e-3)
    assert float(states[20].terms["area"]) == pytest.approx(174.3, abs=0.2)


# ----------------------------------------------------------------------------------------------- the truth

TINY, SIGMA = (1, 21, 28), 4.0


def plane(numbers, classes):
    """Logits linear in the pixels."""
    weights = 0.3 * torch.randn(classes, 3, *TINY, generator=numbers)
    return Network(lambda x: torch.einsum("bcthw,kcthw->bk", x - 0.5, weights), tuple("abcd"[:classes]))


def bent(numbers, classes):
    """Convolution and two layers, in which places help and hinder each other."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=numbers)))
        first = nn.Conv3d(3, 6, (1, 5, 5), stride=(1, 3, 3), padding=(0, 2, 2))
        hidden, last = nn.Linear(6 * 7 * 10, 12), nn.Linear(12, classes)
    with torch.no_grad():
        for layer, factor in ((first, 3), (hidden, 3), (last, 5)):
            layer.weight.mul_(factor)
    module = nn.Sequential(first, nn.ReLU(), nn.Flatten(), hidden, nn.Tanh(), last)
    return Network(module.eval(), tuple("abcd"[:classes]))


def test_of_twelve_seeds_the_search_finds_what_trying_all_settings_finds(promise):
    """At least the best log-odds of all 4096 settings of 0 and 1, but for 5 % of what lies between them.

    Without the area term: a disc is a large part of the ratio here, and sharpening shuts a gap too early.
    """
    generator = MaskGenerator(TINY, sigma=SIGMA)
    codes = torch.arange(4096)[:, None] >> torch.arange(12) & 1
    grids = [generator._surround(s) for s in codes.float().view(-1, *generator.seed_shape).split(256)]
    masks = torch.cat([generator._draw_at_once(grid) for grid in grids])
    means, short, ask = masks.mean((1, 2, 3)), [], {"sigma": SIGMA, "area_weight": 1e-6}
    for k in range(6):
        numbers, classes = torch.Generator().manual_seed(k), 2 + k % 3
        network = (plane if k < 3 else bent)(numbers, classes)
        clips = torch.rand(17, 3, *TINY, generator=numbers)
        targets = torch.randint(0, classes, (17,), generator=numbers).tolist()
        ratio = (0.2, 0.3, 0.45)[(k + k // 3) % 3]
        found = explain(network, clips, targets, "ep3d", (ratio,), max_batch=17, **ask, **LESSON)
        allowed = masks[means <= ratio]
        for clip, target, result in zip(clips, targets, found, strict=True):
            show = Perturbation(clip[None])
            shown = torch.cat([allowed, result.masks])
            with torch.no_grad():
                log_p = network.log_probabilities(show(shown, torch.zeros(len(shown), dtype=torch.long)))
            odds = log_odds(log_p, torch.full((len(shown),), target))
            assert result.masks.mean() <= ratio
            short.append(float((odds[:-1].max() - odds[-1]) / (odds[:-1].max() - odds[:-1].min())))
    reached = float(np.mean(np.array(short) <= 0.05))
    promise("Best of all settings of twelve seeds, but for 5 %: in 90 % of cases", f"{reached:.0%}")
    assert len(short) == 102 and reached >= 0.9, sorted(short)[-30:]
