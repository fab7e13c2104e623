"""What students run on their answers: each check says in one sentence what is wrong, and never the answer.

A check is named after its task and takes what the student wrote, a function or a value. It returns nothing
and prints nothing; it raises CheckFailed, an AssertionError, whatever the student's code raises itself.
Checks are hints, not proofs: the tests that a grader runs are stricter.
"""

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import losses
from .clips import Clip
from .explanation import Explanation, fingerprint
from .networks import Network
from .toys import WINDOW, explained, kept, moving_window, near_boxes, scene, toy_network  # noqa: F401


class CheckFailed(AssertionError):
    """What a check says; a notebook shows the sentence alone, for the check's own lines tell too much."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def _check(check: Callable[..., None]) -> Callable[..., None]:
    """Have a check raise :class:`CheckFailed`, with nothing of itself in it."""

    @functools.wraps(check)
    def run(*arguments: Any) -> None:
        try:
            check(*arguments)
        except AssertionError as error:
            raise CheckFailed(str(error)) from None

    return run


def _call(function: Callable, *arguments: Any) -> Any:
    """What the student's function returns; what it raises becomes one sentence."""
    name = getattr(function, "__name__", "your answer")
    try:
        return function(*arguments)
    except NotImplementedError:
        raise AssertionError(f"{name} is not written yet: put your code where the error is raised.") from None
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(".").replace("\n", " ")
        raise AssertionError(f"{name} raised {said}.") from error


def _tensor(name: str, value: Any, shape: Sequence[int]) -> Tensor:
    """The value, if it is a tensor of that shape whose numbers are finite."""
    assert isinstance(value, Tensor), f"{name} must be a tensor, got {type(value).__name__}."
    got, expected = tuple(value.shape), tuple(shape)
    assert got == expected, f"{name} must have the shape {expected}, got {got}."
    assert torch.isfinite(value).all(), f"{name} holds values that are not finite numbers."
    return value.detach()


def _number(name: str, value: Any) -> float:
    """The value as a float, if it is one finite number."""
    value = (
        value.detach() if isinstance(value, Tensor) else value
    )  # else torch warns, and warnings cost points
    one = isinstance(value, Real | np.bool_) or (isinstance(value, Tensor) and value.ndim == 0)
    assert one and math.isfinite(value), f"{name} must return one finite number, got {value!r}."
    return float(value)


def _three(name: str, value: Any) -> tuple[float, float, float]:
    """The value, if it is three finite numbers."""
    three = (isinstance(value, tuple | list) and len(value) == 3) or getattr(value, "shape", ()) == (3,)
    assert three, f"{name} must return 3 numbers, got {value!r}."
    a, b, c = (_number(f"{name}, for each of the 3,", each) for each in value)
    return a, b, c


# ---- all assignments


@_check
def prediction(answer: Any, options: Sequence[str]) -> None:
    """Any of the options will do: what counts is to have thought before running."""
    assert answer in options, f"prediction is {answer!r}: choose one of {', '.join(map(repr, options))}."


# ---- ps1_perturbation_and_area_loss


@_check
def blend(answer: Callable) -> None:
    """The ends of the mask, the middle, and one mask for all colours."""
    pixels, blurred = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(5))
    for value, name in ((1.0, "ones"), (0.0, "zeros"), (0.25, "quarters")):
        found = _tensor("blend", _call(answer, pixels, blurred, torch.full((4, 5, 6), value)), pixels.shape)
        off = float((found - value * pixels - (1 - value) * blurred).abs().max())
        assert off < 1e-5, (
            f"A mask of {name} gives a clip that is off by up to {off:.3f}: what is kept is `pixels`, the "
            "rest is `blurred`."
        )


@_check
def area_loss(answer: Callable) -> None:
    """Masks of the right size and of the wrong one, in any place and order."""
    size = (2, 5, 10)
    for ones, ratio, expected in ((10, 0.1, 0), (30, 0.1, 20), (0, 0.25, 25)):
        mask = torch.zeros(100)
        mask[100 - ones :] = 1
        found = _number("area_loss", _call(answer, mask.reshape(size), ratio))
        assert abs(found - expected) < 1e-3, (
            f"A mask with {ones} ones among 100 values costs {found:.3f} at v = {ratio}, and its template "
            f"differs from it in {expected} places: is the largest value first, and is it a sum?"
        )


@_check
def template(answer: Callable) -> None:
    """Whole numbers, and no mask that costs more."""
    for size, ratio in (((2, 5, 10), 0.2), ((2, 5, 10), 0.6)):
        found = _call(answer, size, ratio)
        whole = (
            isinstance(found, tuple | list)
            and len(found) == 2
            and all(isinstance(n, Integral) for n in found)
        )
        assert whole, f"template must return two whole numbers, got {found!r}."
        count = math.prod(size)
        assert found[0] == round(ratio * count), (
            f"Of {count} values {found[0]} ones are not the ratio {ratio}: it is a share of all voxels, of "
            "all frames."
        )
        for value in (0.0, 1.0):
            loss = float(losses.area_loss(torch.full((1, *size), value), ratio))
            assert found[1] >= loss - 1e-3, (
                f"You say that at v = {ratio} no mask of {size} costs more than {found[1]}, and one of "
                f"only {value:g} costs {loss:.0f}."
            )


@_check
def area_loss_without_sort(answer: Callable) -> None:
    """The same as with a sort, for a few masks."""
    numbers = torch.Generator().manual_seed(5)
    for k in (1, 20, 60):
        mask = torch.rand(3, 4, 5, generator=numbers)
        found = _number("area_loss_without_sort", _call(answer, mask, k))
        expected = float(losses.area_loss(mask[None], k / 60))
        assert abs(found - expected) < 1e-3, (
            f"For k = {k} of 60 values you give {found:.3f}, the sort gives {expected:.3f}: is t the sum of "
            "the k largest values?"
        )


@_check
def area_gradient(answer: Callable) -> None:
    """The sign of each place, and where nothing pulls."""
    mask = torch.tensor([[[0.9, 0.1], [0.4, 0.0]], [[0.2, 1.0], [0.3, 0.5]]])
    found = _tensor("area_gradient", _call(answer, mask, 2), mask.shape)
    up = found < 0
    assert bool(up[0, 0, 0]) and int(up.sum()) == 1, (
        f"With k = 2 a descent should push up the .9 alone (the 1 is right already), and yours pushes up "
        f"{mask[up].tolist()}: the k largest of all frames together."
    )
    off = float((found[~up] - 2 * mask[~up] * (mask[~up] < 0.9)).abs().max())
    assert off < 1e-5 and abs(float(found[0, 0, 0]) + 0.2) < 1e-5, (
        f"The signs are right, the size is off by up to {max(off, abs(float(found[0, 0, 0]) + 0.2)):.3f}: "
        "compare with the formula."
    )


@_check
def search(answer: Callable) -> None:
    """One window in the frame's lower right corner."""
    window = moving_window((6, 42, 42), (28, 28), (0, -4))
    toy, film = toy_network(window), torch.ones(3, 6, 42, 42)
    mask = _tensor("search", _call(answer, toy, film, 0.15), window.shape)
    low, high, mean = float(mask.min()), float(mask.max()), float(mask.mean())
    assert low >= -1e-4 and high <= 1 + 1e-4, f"The mask goes from {low:.2f} to {high:.2f}, beyond [0, 1]."
    assert abs(mean - 0.15) <= 0.03, (
        f"The mask keeps {mean:.0%} instead of 15%: does the area loss pull, and in the right direction?"
    )
    p = float(toy.probabilities(film[None] * mask)[0, 0])
    assert p >= 0.8, (
        f"The mask has the right size and keeps p = {p:.2f}: does the reward pull, and with the right sign?"
    )


# ---- ps2_ellipsoid_kernel_and_step


@_check
def ellipsoid_kernel(answer: Callable) -> None:
    """One value inside and zeros outside, which sum to 1 and look the same mirrored."""
    for size in ((7, 11, 11), (3, 5, 7)):
        name = f"The kernel of {size}"
        kernel = _tensor(name, _call(answer, size), size).double()
        inside = kernel[kernel > 0]
        total = float(kernel.sum())
        assert abs(total - 1) < 1e-4, f"{name} sums to {total:.4f}: are its ones divided by their number Z?"
        spread = float(inside.max() - inside.min())
        assert kernel.min() >= 0 and spread < 1e-6, (
            f"{name} holds values from {float(kernel.min()):.2g} to {float(kernel.max()):.2g}: "
            "a voxel is either inside or outside, and all those inside weigh the same."
        )
        for axis, along in enumerate(("time", "height", "width")):
            odd = int((kernel != kernel.flip(axis)).sum())
            assert not odd, (
                f"{name} differs in {odd} voxels from its mirror image along {along}, and an ellipsoid does "
                "not: what does rounding do to voxels exactly on the surface?"
            )


@_check
def window_means(answer: Callable) -> None:
    """As many windows as fit without padding; full ones are worth 1."""
    mask, kernel = torch.zeros(9, 25, 36), losses.ellipsoid_kernel()
    for value in (0.0, 0.5, 1.0):
        name = f"M*K of a 9 x 25 x 36 mask that is {value} everywhere"
        found = _tensor(name, _call(answer, mask + value, kernel), (3, 2, 3))
        off = float((found - value).abs().max())
        assert off < 1e-4, (
            f"{name} is off by up to {off:.3f}: the weights of a window sum to 1, so it should be {value}."
        )


@_check
def window_count(answer: Callable) -> None:
    """A whole number, and so many stones are enough."""
    size, ones = (16, 112, 112), int(losses.ellipsoid_kernel(normalised=False).sum())
    for ratio in (0.02, 0.1, 0.3):
        k = _call(answer, ratio, size)
        assert isinstance(k, Integral), (
            f"The number of windows must be an int, got {type(k).__name__}: v' counts whole stones."
        )
        wanted = ratio * math.prod(size)
        assert int(k) * ones >= wanted, (
            f"For v = {ratio} you ask for {k} windows; their {int(k) * ones} voxels cannot hold the "
            f"{wanted:.0f} that are to be kept: how many ones has the kernel, and which way is k rounded?"
        )


@_check
def core_loss(answer: Callable) -> None:
    """The price of an empty mask, and a gradient."""
    mask = torch.zeros(10, 34, 45, requires_grad=True)
    for ratio in (0.05, 0.25):
        loss = _call(answer, mask, ratio)
        price, k = _number("core_loss", loss), losses.window_count(ratio, mask.shape)
        assert abs(price - k) < 1e-3, (
            f"An empty mask costs {price:.3f} at v = {ratio}, which cannot be: each window that ought to be "
            "full is off by 1, and all others are right."
        )
        assert isinstance(loss, Tensor) and loss.requires_grad, (
            "core_loss has no gradient, and a search needs one: stay with tensors from mask to result."
        )


@_check
def frame_weights(answer: Callable) -> None:
    """One weight a frame, 1 on average, the same for a clip played backwards."""
    for padding in ("none", "replicate", "wrap"):
        name = f"frame_weights(16, {padding!r})"
        weights = _tensor(name, _call(answer, 16, padding), (16,))
        mean, skew = float(weights.float().mean()), float((weights - weights.flip(0)).abs().max())
        assert abs(mean - 1) < 1e-4, f"{name} has the mean {mean:.3f}: divide by it, so that 1 is neutral."
        assert skew < 1e-4, (
            f"{name} changes by up to {skew:.3f} if time is reversed, and the kernel does not: "
            "which frames does the first window hold, and which the last one?"
        )


@_check
def step_energy(answer: Callable) -> None:
    """What is kept of the answer pays, what breaks the ratio costs."""
    mask = torch.zeros(16, 112, 112)
    low, high = (_number("step_energy", _call(answer, mask, p, 0.1, 0.0, 0.0)) for p in (0.2, 0.7))
    assert abs(high - low + 0.5) < 1e-4, (
        f"Without losses the energy is {low:.3f} where the mask keeps p = 0.2, and {high:.3f} where it keeps "
        "0.7: it must fall by as much as the probability rises."
    )
    cost = _number("step_energy", _call(answer, mask, 0.2, 0.1, 1.0, 0.0)) - low
    assert cost > 1, (
        f"With area_weight = 1 an empty mask costs {cost:.3f} more than with 0: does the area count?"
    )


# ---- ps3_pointing_games_and_sanity_checks


@_check
def touches(answer: Callable) -> None:
    """Pixels inside a box, beside it and far away."""
    box = torch.tensor([40.0, 50.0, 60.0, 90.0])
    cases = {(50, 70): True, (33, 70): True, (32, 70): False, (45, 43): True, (45, 42): False}
    for (x, y), expected in (cases | {(90, 55): False, (5, 5): False}).items():
        found = bool(_number("touches", _call(answer, x, y, box, 7)))
        assert found == expected, (
            f"Pixel x = {x}, y = {y}, radius 7 and the box x0, y0, x1, y1 = 40, 50, 60, 90: you say {found}. "
            "How far is the pixel from the nearest one of the box?"
        )


@_check
def spatial_pointing(answer: Callable) -> None:
    """Three frames of four hit, each with one hottest pixel."""
    heat, near = torch.zeros(4, 6, 8), torch.zeros(4, 6, 8, dtype=torch.bool)
    heat[range(4), 2, 5] = torch.tensor([0.1, 0.9, 0.4, 0.2])
    near[:3, 1:4, 4:7] = True
    found = _number("spatial_pointing", _call(answer, heat, near, torch.ones(4, dtype=torch.bool)))
    assert abs(found - 0.75) < 1e-6, (
        f"Of four frames with one hottest pixel each, it is near a box in the first three: you give "
        f"{found:.3f}. Does each frame have its own hottest pixel?"
    )


@_check
def temporal_pointing(answer: Callable) -> None:
    """One hottest voxel, inside the segment and outside."""
    heat = torch.zeros(16, 6, 8)
    heat[4, 1, 2], heat[10:] = 1.0, 0.5
    for segment, expected in (((3, 7), 1.0), ((9, 14), 0.0)):
        found = _number("temporal_pointing", _call(answer, heat, segment))
        assert abs(found - expected) < 1e-6, (
            f"The hottest voxel lies in frame 4, the segment is {segment}, and you give {found:.3f}: "
            "look for the one hottest voxel of the whole clip."
        )


@_check
def averages(answer: Callable) -> None:
    """Three numbers; long videos count for more in the first only; videos without a box in none."""
    values, frames = np.array([1.0, 0.0, float("nan")]), np.array([3, 12, 0])
    labels = np.array(["waves", "kicks", "kicks"])
    micro, videos, classes = _three("averages", _call(answer, values, frames, labels))
    assert abs(micro - 0.2) < 1e-6, (
        f"3 of 15 frames are hits, and your micro mean is {micro:.3f}: each frame with a box counts once."
    )
    assert abs(videos - 0.5) < 1e-6 and abs(classes - 0.5) < 1e-6, (
        f"One video has 1, one has 0, and a third has no box: you give {videos:.3f} over videos and "
        f"{classes:.3f} over their two classes; the third must not count."
    )


@_check
def against_control(answer: Callable) -> None:
    """A mean difference between two ends, the same each time."""
    numbers = np.random.default_rng(5)
    method, control = numbers.random(20), numbers.random(20)
    first, again = (_three("against_control", _call(answer, method, control, 0)) for _ in range(2))
    mean, low, high = first
    expected = float((method - control).mean())
    assert abs(mean - expected) < 1e-6, (
        f"The mean of method - control is {mean:.3f} for you, and their means differ by {expected:.3f}."
    )
    assert low < mean < high, (
        f"Your interval goes from {low:.3f} to {high:.3f}, the mean is {mean:.3f}: each draw takes 20 clips "
        "out of 20, and may take one more than once."
    )
    assert first == again, (
        "The same call gives another interval the second time: draw with np.random.default_rng(seed)."
    )
    nothing = _three("against_control", _call(answer, method, method, 0))
    assert max(map(abs, nothing)) < 1e-9, (
        f"A method against itself gives {nothing}: clip by clip there is no difference, so the interval is 0."
    )


@_check
def likeness(answer: Callable) -> None:
    """Itself, its opposite, and the same order in other numbers."""
    heat = torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(5))
    cases = {"itself": (heat, 1.0), "its negative": (-heat, -1.0), "its tenth power": (heat**10, 1.0)}
    for name, (other, expected) in cases.items():
        found = _number("likeness", _call(answer, heat, other))
        assert abs(found - expected) < 1e-4, (
            f"A map and {name} have the likeness {found:.3f} for you: only the order of the pixels counts."
        )


# ---- ps4_explain_your_own_network


@_check
def own(make_network: Callable, make_clip: Callable) -> None:
    """A network and a clip that go together."""
    network, clip = _call(make_network), _call(make_clip)
    assert isinstance(network, Network), f"make_network gives {type(network).__name__}, not a sl.Network."
    assert isinstance(clip, Clip), f"make_clip gives {type(clip).__name__}, not a sl.Clip."
    with torch.no_grad():
        first, again = (
            _call(network.probabilities, clip.pixels[None].repeat(2, 1, 1, 1, 1)) for _ in range(2)
        )
    _tensor("What your network says of two clips", first, (2, len(network.classes)))
    assert torch.allclose(first, again, atol=1e-4), (
        "Your network gives the same clip another answer the second time: is there dropout, or chance?"
    )
    assert float(first[0].max()) >= 0.5, (
        f"The likeliest class of your clip has {float(first[0].max()):.2f}: take one the network is sure of."
    )


@_check
def explanation(answer: Callable, window: Tensor = WINDOW) -> None:
    """One mask of a toy's bright window, better than chance."""
    network, clip = scene(window)
    result = _call(answer, network, clip)
    assert isinstance(result, Explanation), f"explain gives {type(result).__name__}, not an Explanation."
    same = torch.equal(result.clip.pixels, clip.pixels) and result.fingerprints["network"] == fingerprint(
        network
    )
    assert same and result.target == 0, (
        "This Explanation is of another network, clip or class than your function was asked about."
    )
    ratio, mean = result.ratios[0], float(result.masks[0].mean())
    assert len(result.ratios) == 1 and 0 < ratio <= 0.3 and mean <= 1.25 * ratio + 0.005, (
        f"The first of {len(result.ratios)} masks should keep {ratio:.0%} and keeps {mean:.0%}; one mask of "
        "at most 30% is wanted."
    )
    p = kept(network, clip, result.masks[0], 0)
    luck = explained(network, clip, "random", ratio)
    chance, said = float(luck.probability[0]), float(result.probability[0])
    assert p >= chance + 0.1 and abs(p - said) < 0.02, (
        f"Your mask keeps p = {p:.2f} of a toy's answer (the Explanation says {said:.2f}), and a random one "
        f"of the same size {chance:.2f}: that is not clearly more."
    )


@_check
def controls(answer: Callable, window: Tensor = WINDOW, ratio: float = 0.2) -> None:
    """Three numbers, each recomputed."""
    network, clip = scene(window)
    found = {m: explained(network, clip, m, ratio) for m in ("motion", "random", "middle")}
    given = _call(answer, network, found["motion"])
    assert isinstance(given, dict) and set(given) == {"method", "random", "middle"}, (
        f"against must give a dictionary with method, random and middle, got {given!r}."
    )
    for name, value in given.items():
        wanted = float(found["motion" if name == "method" else name].probability[0])
        assert abs(_number(f"The value of {name!r}", value) - wanted) < 1e-3, (
            f"For {name!r} you give {float(value):.3f}, and such a mask of {ratio:.0%} keeps {wanted:.3f}."
        )


@_check
def leakage(answer: Callable, window: Tensor = WINDOW, level: float = 0.4) -> None:
    """A mask of one clip over another, darker one."""
    network, clip = scene(window)
    _, other = scene(window, level)
    result = explained(network, clip, "motion", 0.2)
    wanted = kept(network, other, result.masks[0], 0)
    found = _number("leakage", _call(answer, network, result, other))
    assert abs(found - wanted) < 1e-3, (
        f"Over another clip the mask leaves the class {wanted:.3f}, and you give {found:.3f}: is it that "
        "clip that the network sees, and through the mask?"
    )
