import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from steplab.clips import Clip
from steplab.config import LITERAL, METHODS, PRESETS, make_config
from steplab.engine import BlurGradient, Descent, untouched
from steplab.explain import Explanation, StepConfig, _converged, explain, smallest_ratio
from steplab.networks import Network
from steplab.perturb import gaussian_matrix

SIZE = (6, 42, 42)
QUICK = {"progress": False, "preset": "smoke", "ratios": (0.1,)}


def spotted_clip():
    """A grey clip with one fine pattern in frames 2 to 4, rows 21 to 34, columns 7 to 20."""
    pixels = torch.full((3, *SIZE), 0.5)
    rows, columns = torch.meshgrid(torch.arange(42), torch.arange(42), indexing="ij")
    pattern = ((rows + columns) % 2 * 0.8 - 0.4).expand(3, 3, 42, 42)
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[2:5, 21:35, 7:21] = True
    pixels[:, 2:5] += pattern * inside[2:5]
    return Clip(pixels, torch.arange(6) / 8, "test"), inside


def pattern_network():
    """Knows one thing: how much of that pattern it sees, anywhere."""
    rows, columns = torch.meshgrid(torch.arange(42), torch.arange(42), indexing="ij")
    detector = ((rows + columns) % 2 * 2.0 - 1.0)[None, None, None]

    def logits(pixels):
        seen = ((pixels - 0.5) * detector).mean(dim=(1, 2, 3, 4)) * 700
        return torch.stack([seen - 8, torch.zeros_like(seen)], dim=1)

    return Network(logits, ("pattern", "nothing"), name="pattern")


class Small(nn.Module):
    """Everything that has gone wrong elsewhere: norms, dropout, in-place ReLU, a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(3, 6, 3, stride=2, padding=1), nn.BatchNorm3d(6), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.memory = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)
        self.features[0].weight.requires_grad_(False)
        self.train()
        self.features[1].eval()

    def forward(self, x):
        x.sub_(0.5)  # a network may spoil its input
        steps, _ = self.memory(self.features(x).mean(dim=(3, 4)).transpose(1, 2))
        return self.head(steps.mean(dim=1)) * 8


@pytest.fixture
def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small()
    module.head.weight.grad = torch.ones_like(module.head.weight)
    module.head.register_forward_hook(lambda *_: None)
    return Network(module, ("a", "b", "c"), name="small")


@pytest.fixture
def clips():
    pixels = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return [Clip(p, torch.arange(6) / 8, f"clip {i}") for i, p in enumerate(pixels)]


def photograph(module):
    """All there is to know of a module and of the global random numbers."""
    return {
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "storage": [p.data_ptr() for p in module.parameters()],
        "layout": [(p.dtype, p.stride()) for p in module.parameters()],
        "training": [m.training for m in module.modules()],
        "wanted": [p.requires_grad for p in module.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._backward_hooks)) for m in module.modules()],
        # not Python's own numbers: the type checks that run in tests draw some outside of the guard
        "random": (torch.get_rng_state(), np.random.get_state()[1].copy()),
    }  # fmt: skip


def differences(before, after):
    """Names of what is not as it was."""
    return [k for k in before if not same(before[k], after[k])]


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        if a.is_meta:
            return b.is_meta and a.shape == b.shape
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("method", ["step", "ep3d", "ep3d-evenly"])
def test_the_mask_finds_what_the_network_looks_at(method):
    clip, inside = spotted_clip()
    result = explain(
        pattern_network(), clip, method=method, ratios=(0.05, 0.1), preset="lesson", progress=False
    )
    assert result.label == "pattern" and result.original > 0.95
    in_frames = result.masks[:, 2:5]
    kept = (in_frames * inside[2:5]).sum((1, 2, 3)) / inside.sum()
    assert kept[1] > 0.5
    t, y, x = np.unravel_index(int(result.heatmap.argmax()), SIZE)
    if method != "ep3d-evenly":
        assert inside[t, y, x]
    best = result.heatmap[3].argmax()
    assert inside[3].flatten()[best]


def test_what_a_result_holds(small, clips):
    result = explain(small, clips[0], "b", ratios=(0.1, 0.3), preset="smoke", seed=3, progress=False)
    assert result.masks.shape == (2, *SIZE) and result.heatmap.shape == SIZE
    assert result.masks.min() >= 0 and result.masks.max() <= 1
    assert (result.target, result.label, result.seed) == (1, "b", 3)
    assert result.ratios == (0.1, 0.3) and result.probability.shape == (2,)
    rounds = PRESETS["smoke"]["iterations"]
    for key in ("energy", "probability", "mean", "area", "core"):
        assert result.history[key].shape == (2, rounds + 1), key
        assert np.isfinite(result.history[key]).all(), key
    assert set(result.fingerprints) == {"network", "clip"} and result.versions["torch"] == torch.__version__
    assert not result.interrupted and result.config.precision == "float32"
    fixed = {"preset": "paper", "iterations": 12, "learning_rate": 0.1, "area_growth": 1.0}  # weights stay
    energy = explain(small, clips[0], "b", ratios=(0.1,), progress=False, **fixed).history["energy"][0]
    assert energy[-1] < energy[0]
    assert (result.history["probability"][:, -1] == result.probability.numpy()).all()
    np.testing.assert_allclose(result.history["mean"][:, -1], result.masks.mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_in_every_preset_and_repeats_itself(method):
    net = Network(lambda x: (x - 0.5).mean((1, 3, 4))[:, :2] * 900, ("early", "late"))
    clip = torch.rand(3, 8, 42, 42, generator=torch.Generator().manual_seed(0))
    for preset in PRESETS:
        options = {**QUICK, "preset": preset, "method": method, "iterations": 3, "core_start": 1}
        first, again, other = (explain(net, clip, 0, seed=s, **options) for s in (0, 0, 1))
        assert torch.equal(first.masks, again.masks), preset
        alike = torch.equal(first.masks, other.masks)
        assert alike == (preset == "released"), f"{preset}: there masks start without noise"
        assert torch.isfinite(first.masks).all()


@pytest.mark.parametrize("preset", ["smoke", "lesson", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_no_place_and_no_frame_is_special(method, preset):
    """Null test by symmetry: move the noise a mask starts with, and all that comes of it moves along.

    So the mean mask over random starts is flat, in space and in time, whatever the statistics say. (With
    replicated frames the ends of a clip are special in time: `step-padded` is the variant that has it.)
    """
    if method == "step-padded":
        pytest.skip("special in time by definition")
    size, moved = (6, 35, 42), (2, 3, 1)
    config = make_config(
        method, preset, size, {"iterations": 25, "shrink": 10, "learning_rate": 0.1, "momentum": 0.5}
    )
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    noise = 1 - torch.rand(1, 6, 5, 6, generator=torch.Generator().manual_seed(1)) * 0.2
    found = []
    for start in (noise, noise.roll(moved, dims=(1, 2, 3))):
        descent = Descent(
            lambda x: x.new_zeros(len(x), 2).log_softmax(1) + 0 * x.sum(),
            pixels,
            [0],
            [0],
            [0.2],
            config,
            start,
        )
        for _ in range(config.iterations):
            descent.step()
        found.append(descent.finish()["masks"])
    back = found[1].roll((-2, -21, -7), dims=(1, 2, 3))
    assert 0.01 < found[0].mean() < 0.9
    torch.testing.assert_close(back, found[0], rtol=0, atol=1e-3)


def test_the_blurred_gradient_is_the_gradient_blurred_and_goes_round():
    """Of one voxel's wish, each voxel gets its share by a Gaussian over time, height and width."""
    blurs = [gaussian_matrix(n, s, "wrap") for n, s in ((6, 1.0), (35, 3.0), (42, 3.0))]
    masks = torch.rand(1, 6, 35, 42, dtype=torch.float64, requires_grad=True)
    seen = BlurGradient.apply(masks, *blurs)
    assert torch.equal(seen, masks)
    (found,) = torch.autograd.grad(seen[0, 0, 1, 20], masks)

    def bell(n, at, sigma):
        away = (torch.arange(n, dtype=torch.float64) - at).abs()
        bells = sum(torch.exp(-((away + turn * n) ** 2) / (2 * sigma**2)) for turn in (-1, 0, 1))
        return bells / bells.sum()

    shares = [bell(6, 0, 1.0), bell(35, 1, 3.0), bell(42, 20, 3.0)]
    torch.testing.assert_close(found[0], torch.einsum("t,h,w->thw", *shares), atol=1e-6, rtol=0)
    assert found[0, 5, 34, 20] > 0.3 * found.max()  # round the ends


def test_published_masks_keep_off_the_edge():
    size = (6, 56, 56)
    pixels = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(0))
    net = Network(lambda x: x.new_zeros(len(x), 2) + 0 * x.sum(), ("a", "b"))
    share = {}
    for preset, more in (("released", {"learning_rate": 0.7}), ("smoke", {})):
        results = explain(net, pixels, 0, "ep3d", (0.2,), preset, progress=False, iterations=40, **more)
        masks = torch.cat([r.masks for r in results])
        share[preset] = float(1 - masks[..., 6:-6, 6:-6].sum() / masks.sum())
    assert share["released"] < 0.383 - 0.15 < share["smoke"]


def test_a_batch_is_what_its_items_are_alone(small, clips):
    options = {**QUICK, "ratios": (0.05, 0.2)}
    together = explain(small, clips, [0, 1, 2], max_batch=6, **options)
    for i, clip in enumerate(clips):
        alone = explain(small, clip, i, **options)
        torch.testing.assert_close(together[i].masks, alone.masks, rtol=0, atol=1e-5)
        torch.testing.assert_close(together[i].probability, alone.probability, rtol=0, atol=1e-5)
        for v, ratio in enumerate(alone.ratios):
            one = explain(small, clip, i, **{**QUICK, "ratios": (ratio,)})
            torch.testing.assert_close(one.masks[0], alone.masks[v], rtol=0, atol=1e-5)


def test_masks_of_a_group_end_together_and_are_what_they_are_alone():
    clip, _ = spotted_clip()
    options = {"preset": "lesson", "progress": False, "ratios": (0.05, 0.3), "method": "ep3d"}
    together = explain(pattern_network(), clip, max_batch=2, **options)
    alone = explain(pattern_network(), clip, max_batch=1, **options)
    torch.testing.assert_close(together.masks, alone.masks, rtol=0, atol=1e-5)
    for result in (together, alone):
        assert result.history["energy"].shape == (2, result.config.iterations + 1)
        assert np.isfinite(result.history["energy"]).all()


def test_a_mask_has_converged_where_it_is_as_large_as_asked_and_stands_still():
    def told(mean, *probabilities):
        before = [0.0] * (40 - len(probabilities))
        rows = [{"mean": 0.5, "probability": p} for p in (*before, *probabilities)]
        return _converged([*rows[:-1], {**rows[-1], "mean": mean}], 0.2)

    assert told(0.195, 0.5, 0.52, 0.54, 0.5, 0.54) and told(0.2009, *[0.9] * 5)
    assert not told(0.193, *[0.9] * 5), "smaller than asked"
    assert not told(0.2011, *[0.9] * 5), "larger"
    assert not told(0.2, 0.5, 0.56, 0.5, 0.5, 0.5), "it moved, though it ends where it was"
    assert not told(0.2, *[0.9] * 4), "of 40 rows the last five"

    clip, _ = spotted_clip()
    options = {"ratios": (0.1, 0.3), "progress": False, "method": "ep3d"}
    long = explain(pattern_network(), clip, preset="lesson", **options)
    last = long.history["probability"][:, -(long.config.iterations + 1) // 8 :]
    assert long.converged == (True, True) and (np.ptp(last, axis=1) <= 0.05).all()
    early = explain(pattern_network(), clip, preset="lesson", iterations=3, shrink=20, **options)
    assert early.converged == (False, False), "the ratio is still falling"


def test_a_mask_is_as_large_as_its_ratio_even_where_the_class_needs_more():
    """A network that wants every pixel: the reward would make masks too large, the ratio holds all along."""
    bright = Network(
        lambda x: torch.stack([6 * x.mean((1, 2, 3, 4)), torch.full(x.shape[:1], 3.0)], 1),
        ["bright", "dark"],
    )
    clip = torch.full((3, 8, 56, 56), 0.9)
    options = {"perturbation": "fade-black", "preset": "lesson", "progress": False, "method": "ep3d"}
    kept = explain(bright, clip, "bright", ratios=(0.05, 0.2), **options)
    shrink = kept.config.shrink
    for mask, ratio, means in zip(kept.masks, kept.ratios, kept.history["mean"], strict=True):
        assert ratio >= mask.mean() > 0.97 * ratio
        assert (means[shrink + 1 :] <= 1.005 * ratio).all() and (means[shrink + 1 :] >= 0.95 * ratio).all()
    again = torch.stack([bright.probabilities((m * clip)[None])[0, 0] for m in kept.masks])
    torch.testing.assert_close(again, kept.probability, rtol=1e-4, atol=1e-6)


def test_of_the_masks_as_large_as_asked_the_best_is_kept_and_of_equals_the_latest():
    clip, _ = spotted_clip()
    pixels = clip.pixels[None]
    config = make_config("ep3d", "lesson", pixels.shape[2:], {})
    descent = Descent(pattern_network().log_probabilities, pixels, [0], [0], [0.3], config)
    shape = descent.seeds.shape
    tried = [  # place of the one lit seed, its mask's mean, what it keeps
        (0, 0.295, 0.80), (1, 0.3, 0.90), (2, 0.295, 0.85), (3, 0.4, 0.99), (0, 0.29, 0.99),
        (4, 0.292, 0.898), (5, 0.292, 0.5),
    ]  # fmt: skip
    for place, mean, kept in tried:
        seeds = torch.zeros(shape)
        seeds[0, 0, 0, place] = 1
        descent.seeds, descent.reward = seeds.requires_grad_(), torch.logit(torch.tensor([kept]))
        descent._note(torch.tensor([mean]))
    assert descent.finish(interrupted=True)["seeds"][0, 0, 0].argmax() == 5
    assert descent.finish()["seeds"][0, 0, 0].argmax() == 4


def test_the_network_is_untouched(small, clips):
    before = photograph(small.module)
    explain(small, clips[0], **QUICK)
    assert differences(before, photograph(small.module)) == []
    explain(small, clips[0], precision="bfloat16", **QUICK)
    assert differences(before, photograph(small.module)) == []
    smallest_ratio(small, clips[0], preset="smoke", iterations=2, tolerance=0.2, progress=False)
    assert differences(before, photograph(small.module)) == []


class Mishap(Exception):
    pass


@pytest.mark.parametrize(
    "place", ["first call", "later call", "backward", "callback", "descent", "final", "heat"]
)
def test_the_network_is_untouched_after_a_mishap(small, clips, place, monkeypatch):
    before = photograph(small.module)
    calls, options = [], dict(QUICK)
    inner = small.fn.forward

    def fail(*_, **__):
        torch.rand(3), np.random.rand(), random.random()
        raise Mishap(place)

    def forward(x):
        calls.append(1)
        small.fn.features[1].running_mean += 1  # a buffer that changes under way
        if place == "first call" or (place == "later call" and len(calls) == 4):
            fail()
        y = inner(x)
        if place == "backward" and y.requires_grad:
            y.register_hook(fail)
        return y

    monkeypatch.setattr(small.fn, "forward", forward)
    if place == "callback":
        options |= {"callback": fail, "callback_every": 2}
    elif place in ("descent", "final"):
        monkeypatch.setattr(f"steplab.engine.Descent.{'step' if place == 'descent' else 'finish'}", fail)
    elif place == "heat":
        monkeypatch.setattr(sys.modules["steplab.explain"], "heat_map", fail)
    generator = torch.get_rng_state()
    with pytest.raises(Mishap):
        explain(small, clips[0], **options)
    if place == "heat":  # raised after the guard: only there may the numbers have moved
        torch.set_rng_state(generator)
        before.pop("random")
    after = photograph(small.module)
    if place == "heat":
        after.pop("random")
    assert differences(before, after) == []


def test_untouched_restores_what_the_body_breaks(small):
    before, numbers = photograph(small.module), random.getstate()
    with pytest.raises(Mishap), untouched(small):
        assert not any(m.training for m in small.module.modules())
        assert not any(p.requires_grad for p in small.module.parameters())
        small.module.train()
        small.module.features[1].running_var.zero_()
        small.module.head.register_forward_hook(lambda *_: None)
        small.module.head.weight.data = small.module.head.weight.data.half()
        small.module.head.weight.grad = None
        torch.rand(1), np.random.rand(), random.random()
        raise Mishap
    assert random.getstate() == numbers
    assert differences(before, photograph(small.module)) == []


def test_ctrl_c_returns_the_masks_there_are(clips):
    seen = []

    def interrupt(state):
        seen.append(state)
        if len(seen) == 3:
            raise KeyboardInterrupt

    net = pattern_network()
    options = {**QUICK, "ratios": (0.1, 0.2, 0.3), "callback": interrupt, "callback_every": 8}
    result = explain(net, clips[0], **options, iterations=16, max_batch=1)
    assert result.interrupted and result.ratios == (0.1, 0.2)
    assert result.masks.shape == (2, *SIZE) and np.isnan(result.history["energy"][1, -1])
    assert not explain(net, clips[0], **QUICK).interrupted


def test_callback_sees_each_mask_in_work(clips):
    states = []
    explain(
        pattern_network(), clips[:2], 0, ratios=(0.1, 0.2), preset="smoke", progress=False,
        callback=states.append, callback_every=3, iterations=7, max_batch=4,
    )  # fmt: skip
    assert [s.iteration for s in states] == [3, 6]
    last = states[-1]
    assert last.clips == [0, 0, 1, 1] and last.ratios == [0.1, 0.2, 0.1, 0.2] and last.iterations == 7
    assert last.masks.shape == (4, *SIZE) and not last.masks.requires_grad
    assert not torch.equal(states[0].masks, last.masks)


@pytest.mark.parametrize("method", ["step", "ep3d", "ep3d-second-order"])
def test_terms_add_up_to_the_energy_as_it_is_defined(method):
    """Area and reward as written in eq. 4, from the masks that the callback sees."""
    clip, _ = spotted_clip()
    states = []
    config = {
        "callback": states.append,
        "callback_every": 1,
        "iterations": 5,
        "area_growth": 1.1,
        "reward": "log",
    }
    explain(pattern_network(), clip, 0, method, **QUICK | {"preset": "paper"}, **config, scale_to_size=False)
    for n, state in enumerate(states):
        assert torch.allclose(sum(state.terms.values()), state.energy, rtol=1e-5)
        r = torch.zeros(state.masks[0].numel())
        r[: round(0.1 * len(r))] = 1
        area = (state.masks[0].flatten().sort(descending=True).values - r).square().mean()
        assert float(state.terms["area"]) == pytest.approx(300 * 1.1**n * float(area), rel=1e-3)
        assert torch.allclose(state.terms["reward"], -30 * state.probability.log(), rtol=1e-4)
    extra = {"step": {"core"}, "ep3d": set(), "ep3d-second-order": {"bend"}}[method]
    assert set(states[0].terms) == {"area", "reward"} | extra


def test_a_callback_changes_constants_from_the_next_iteration_and_it_is_on_record():
    clip, _ = spotted_clip()
    seen = []

    def change(state):
        seen.append(state)
        return {"learning_rate": 0.0, "area_weight": 600.0} if state.iteration == 3 else None

    ask = {**QUICK, "preset": "paper", "callback_every": 1, "iterations": 6, "momentum": 0.0}
    ask["area_growth"] = 1.0
    result = explain(pattern_network(), clip, 0, "ep3d", callback=change, **ask)
    plain = explain(pattern_network(), clip, 0, "ep3d", **ask)
    masks = [state.masks for state in seen]
    assert not torch.equal(masks[1], masks[2]), "it moved until then"
    assert all(torch.equal(masks[3], m) for m in masks[4:]), "and stands still since"
    assert float(seen[3].terms["area"] / plain.history["area"][0, 3]) == pytest.approx(
        2 * float(seen[2].terms["area"] / plain.history["area"][0, 2]), rel=1e-4
    )
    assert np.isnan(result.history["area_weight"][0, :3]).all()
    assert (result.history["area_weight"][0, 3:] == 600).all()
    assert (result.history["learning_rate"][0, 3:] == 0).all()
    assert not {"area_weight", "learning_rate"} & set(plain.history)


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 3}, {"core_weight": -1.0}, {"area_weight": float("nan")}, {"area_weight": float("inf")}],
)
def test_a_callback_cannot_change_anything_else(wrong):
    clip, _ = spotted_clip()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        explain(pattern_network(), clip, 0, callback=lambda state: wrong, callback_every=1, **QUICK)


def test_saved_and_loaded_is_the_same(small, clips, tmp_path):
    result = explain(small, clips[0], **{**QUICK, "ratios": (0.1, 0.2)})
    loaded = Explanation.load(result.save(tmp_path / "deep" / "a.safetensors"))
    for name in ("masks", "heatmap", "probability"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    assert torch.equal(loaded.clip.pixels, clips[0].pixels) and loaded.clip.source == "clip 0"
    assert loaded.history.keys() == result.history.keys()
    assert all(np.array_equal(loaded.history[k], result.history[k], equal_nan=True) for k in loaded.history)
    for name in (
        "ratios",
        "config",
        "versions",
        "fingerprints",
        "converged",
        "interrupted",
        "original",
        "label",
    ):
        assert getattr(loaded, name) == getattr(result, name), name
    again = explain(
        small,
        loaded.clip,
        loaded.target,
        loaded.method,
        loaded.ratios,
        loaded.preset,
        loaded.seed,
        progress=False,
    )
    assert torch.equal(again.masks, result.masks)
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.load(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError):
        Explanation.load(tmp_path / "c.safetensors")


def test_fingerprints_tell_networks_and_clips_apart(small, clips):
    first = explain(small, clips[0], iterations=1, **QUICK).fingerprints
    assert explain(small, clips[1], iterations=1, **QUICK).fingerprints["clip"] != first["clip"]
    with torch.no_grad():
        small.module.head.bias += 1e-3
    assert explain(small, clips[0], iterations=1, **QUICK).fingerprints["network"] != first["network"]


def test_pictures(clips, tmp_path):
    result = explain(pattern_network(), clips[0], 0, iterations=2, **QUICK)
    result.filmstrip(tmp_path / "strip.png", ratio=0.1)
    assert (tmp_path / "strip.png").stat().st_size > 1000
    assert result.to_video(tmp_path / "clip.mp4").stat().st_size > 1000
    with pytest.raises(ValueError, match="ratio"):
        result.filmstrip(ratio=0.5)


def test_smallest_ratio_of_a_network_with_a_known_one():
    clip, inside = spotted_clip()
    share = (
        inside.float().mean().item()
    )  # .056: to keep half of the evidence, about half of that must be kept
    found = smallest_ratio(
        pattern_network(), clip, threshold=0.5, tolerance=0.02, method="ep3d", progress=False
    )
    assert 0.15 * share < found.ratio < 2 * share
    assert found.probability >= found.threshold == 0.5
    assert found.mask.shape == SIZE
    lower = [v for v, p in found.tried if p < 0.5]
    assert found.ratio - max(lower, default=0) <= 0.04


def test_what_was_asked_for_wins_over_the_presets(small, clips):
    result = explain(
        small, clips[0], iterations=2, sigma=5.0, perturbation="fade-grey", boundary="crop", **QUICK
    )
    assert result.config.sigma == 5.0 and result.config.boundary == "crop"
    assert result.history["energy"].shape == (1, 3)
    assert replace(result.config, iterations=3) != result.config == StepConfig(**vars(result.config))


PUBLISHED = {"optimiser": "momentum", "reward": "log", "reward_weight": 1.0, "reward_reach": (0.0, 0.0)}
PUBLISHED |= {"iterations": 20, "learning_rate": 0.12, "dampening": 0.5, "area_growth": 1.0, "shrink": 0}


@pytest.mark.parametrize("settings, agreement", [(PUBLISHED, 0.98), ({}, 0.95)], ids=["published", "lesson"])
def test_bfloat16_hardly_changes_the_masks(settings, agreement):
    """With the published weights, and by Adam's steps, in which small gradients count like large ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(
            nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(2),
            nn.Flatten(),
            nn.Linear(64, 4),
        )
        module[-1].weight.data *= 20
    clip, _ = spotted_clip()
    net = Network(module, ("a", "b", "c", "d"))
    how = {**QUICK, **settings}
    masks = [explain(net, clip, precision=p, **how).masks > 0.5 for p in ("float32", "bfloat16")]
    union = (masks[0] | masks[1]).sum()
    assert union > 0 and (masks[0] & masks[1]).sum() / union >= agreement


def test_the_letter_of_the_paper_is_a_switch(clips):
    result = explain(
        pattern_network(), Clip(torch.rand(3, 8, 42, 42), torch.arange(8) / 8, "x"), **QUICK, **LITERAL
    )
    assert result.config.core_padding == "none" and result.config.core_stride == (1, 11, 11)
    assert torch.isfinite(result.masks).all()


def test_inference_mode_outside_is_no_obstacle(small, clips):
    with torch.inference_mode():
        result = explain(small, Clip(clips[0].pixels.clone(), clips[0].times, "x"), **QUICK)
    assert result.masks.shape == (1, *SIZE)


def bad(**changes):
    return {"clip": torch.rand(3, *SIZE), **changes}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (bad(clip=torch.rand(3, 3, 42, 42)), "3 frames"),
        (bad(clip=torch.rand(6, 3, 42, 42)), r"\(T, 3, H, W\)"),
        (bad(clip=torch.rand(42, 42)), r"\(3, T, H, W\)"),
        (bad(clip=torch.full((3, *SIZE), float("nan"))), "finite"),
        (bad(clip=torch.rand(3, *SIZE) * 255), r"\[0, 1\]"),
        (bad(clip=[]), "at least one"),
        (bad(clip=[torch.rand(3, *SIZE), torch.rand(3, 5, 42, 42)]), "one shape"),
        (bad(ratios=()), "ratios"),
        (bad(ratios=(0.1, 1.2)), "ratios"),
        (bad(ratios=(0.1, 0.1)), "ratios"),
        (bad(target="patern"), "pattern"),
        (bad(target=7), "target"),
        (bad(target=[0, 1]), "target"),
        (bad(method="stepp"), "method"),
        (bad(preset="fast"), "preset"),
        (bad(preset="quick"), "preset: got 'quick', expected one of smoke, lesson, paper, released"),
        (bad(learning_rte=1), "learning_rte"),
        (bad(iterations=0), "iterations"),
        (bad(cooling=0.0), "cooling must be positive, got 0"),
        (bad(optimiser="adam"), "optimiser: got 'adam', expected one of budget, momentum, sgd"),
        (bad(reward="p"), "reward: got 'p', expected one of log-odds, log, probability"),
        (bad(variant="remove"), "variant: got 'remove', expected one of preserve, delete, dual"),
        (bad(target=0, against=0), "against: expected a class that is not explained, got 0"),
        (bad(target=0, against="patern"), "against: .*did you mean 'pattern'"),
        (bad(target=0, against=7), "against: .*7"),
        (bad(boundary="mirror"), "boundary"),
        (bad(boundary="replicate"), "boundary"),
        (bad(perturbation="noise"), "perturbation"),
        (bad(max_batch=0), "max_batch"),
    ],
)
def test_errors_say_what_was_expected(arguments, words):
    with pytest.raises(ValueError, match=words):
        explain(pattern_network(), arguments.pop("clip"), **{**QUICK, **arguments})


def test_a_network_of_nan_is_refused(clips):
    net = Network(lambda x: x.mean((2, 3, 4)) * float("nan"), ("a", "b", "c"))
    with pytest.raises(ValueError, match="finite"):
        explain(net, clips[0], **QUICK)
