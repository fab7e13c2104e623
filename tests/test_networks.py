"""networks.py, narrow.py, vgg_lstm.py, pretrained.py: wrapper, names, files and the two families."""

import json
import pickle
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn

from steplab import networks
from steplab.narrow import (
    FactoredConv,
    NarrowR2Plus1D,
    NarrowVGG16LSTM,
    SpatialConv,
    TemporalConv,
    normed,
    unfold_time,
)
from steplab.networks import Affine, Network, available_networks, load_network, save_network
from steplab.pretrained import FrameConsensus, consensus_pixels, kinetics_pixels
from steplab.vgg_lstm import VGG16LSTM, VGGLSTM, ReLULSTM, fold_time

NAMES = ("waves", "kicks", "sits down", "stands up", "nothing")


def clips(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def lively(module):
    """Batch norms with statistics other than 0 and 1, as after training."""
    torch.manual_seed(7)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module.eval()


class TestWrapper:
    def test_soft_maxes_logits_once_and_probabilities_never(self):
        scores = torch.tensor([[2.0, 1.0, 0.0]])
        logits = Network(lambda x: scores.expand(len(x), 3), "abc".upper().split() + ["b", "c"])
        x = clips(2, 3, 4, 8, 8)
        assert torch.equal(logits(x), scores.expand(2, 3))
        assert torch.allclose(logits.probabilities(x), scores.softmax(1).expand(2, 3))
        assert torch.allclose(logits.log_probabilities(x), scores.log_softmax(1).expand(2, 3))
        answer = torch.tensor([[0.7, 0.3, 0.0]])
        sure = Network(lambda x: answer.expand(len(x), 3), ("a", "b", "c"), output="probability")
        assert torch.equal(sure.probabilities(x), answer.expand(2, 3))
        assert torch.allclose(sure.log_probabilities(x).exp(), answer.expand(2, 3), atol=1e-6)
        assert sure.log_probabilities(x).isfinite().all()

    def test_preprocesses_before_the_callable(self):
        seen = []
        network = Network(
            lambda x: seen.append(x) or x.mean((1, 2, 3, 4))[:, None], ["a"], lambda x: 2 * x - 1
        )
        x = clips(1, 3, 4, 8, 8)
        network(x)
        assert torch.equal(seen[0], 2 * x - 1)

    def test_leaves_the_module_as_it_is(self):
        module = NarrowR2Plus1D(5, width=4).train()
        network = Network(module, NAMES)
        assert network.module is module and module.training
        assert Network(module.forward, NAMES).module is None
        with torch.no_grad():
            network(clips(1, 3, 8, 32, 32))
        assert module.training and all(p.requires_grad for p in module.parameters())

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (torch.rand(3, 4, 8, 8), r"batch x 3 x time.*\(3, 4, 8, 8\)"),
            (torch.rand(1, 4, 3, 8, 8), r"batch x 3 x time.*\(1, 4, 3, 8, 8\)"),
            (torch.rand(1, 3, 3, 8, 8), "three frames.*frames=3"),
            (torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8), "floats.*uint8"),
            (torch.rand(1, 3, 4, 8, 8), "expected 1 x 4 scores"),
        ],
    )
    def test_says_what_is_wrong_with_a_batch(self, pixels, message):
        network = Network(lambda x: x.flatten(1)[:, :5], list("abcd"))
        with pytest.raises(ValueError, match=message):
            network(pixels)

    def test_takes_three_frames_when_told(self):
        assert Network(lambda x: x.flatten(1)[:, :2], ("a", "b"), frames=3)(clips(1, 3, 3, 8, 8)).shape == (
            1,
            2,
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"fn": 3}, "fn: expected a callable"),
            ({"classes": "abc"}, "classes: expected a sequence"),
            ({"classes": []}, "classes: expected a sequence"),
            ({"output": "softmax"}, "output: got 'softmax', expected one of logits, probability"),
        ],
    )
    def test_refuses_wrong_arguments(self, changes, message):
        with pytest.raises(ValueError, match=message):
            Network(**{"fn": torch.relu, "classes": ["a"], **changes})

    def test_finds_classes_and_suggests_near_ones(self):
        network = Network(torch.relu, NAMES)
        assert network.index("sits down") == network.index("Sits Down") == network.index(2) == 2
        with pytest.raises(ValueError, match="no class 'sit down'; did you mean 'sits down'"):
            network.index("sit down")
        with pytest.raises(ValueError, match="it has waves, kicks"):
            network.index("qqq")
        for wrong in (5, -1, True):
            with pytest.raises(ValueError, match=r"expected 0\.\.4"):
                network.index(wrong)


class TestFolding:
    def test_fold_and_unfold_are_inverse_and_fold_is_channels_last(self):
        x = clips(2, 5, 4, 6, 7)
        folded = fold_time(x)
        assert torch.equal(folded[4 + 3], x[1, :, 3])
        assert folded.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(unfold_time(folded, 4), x)

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("kind", ["space", "time"])
    def test_folded_convolutions_equal_3d_ones(self, kind, stride):
        torch.manual_seed(0)
        x = clips(2, 4, 6, 9, 9)
        if kind == "space":
            conv = SpatialConv(4, 5, 3, stride)
            full = nn.Conv3d(4, 5, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
            full.weight.data = conv.weight.data[:, :, None]
            ours = unfold_time(conv(fold_time(x)), 6)
        else:
            conv = TemporalConv(4, 5, 3, stride)
            full = nn.Conv3d(4, 5, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
            full.weight.data = conv.weight.data[..., None]
            ours = unfold_time(conv.images(conv(conv.rows(fold_time(x), 6)), 9, 9), 6 // stride)
        torch.testing.assert_close(ours, full(x), rtol=1e-4, atol=1e-5)

    def test_norms_are_folded_into_the_convolutions_outside_training(self):
        torch.manual_seed(0)
        conv, norm, x = SpatialConv(3, 5), nn.BatchNorm2d(5), torch.randn(4, 3, 9, 9)
        for _ in range(20):
            normed(conv, norm, 2 * torch.randn(8, 3, 9, 9) + 1)
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.uniform_(-1, 1)
        norm.eval()
        torch.testing.assert_close(normed(conv, norm, x), norm(conv(x)), rtol=1e-5, atol=1e-5)
        norm.train()
        torch.testing.assert_close(normed(conv, norm, x).mean((0, 2, 3)), norm.bias)

    def test_linear_stem_has_no_inner_norm(self):
        assert (
            FactoredConv(3, 4).space_norm is not None and FactoredConv(3, 4, linear=True).space_norm is None
        )


class TestNarrowR2Plus1D:
    def test_shapes_and_size(self):
        module = NarrowR2Plus1D(9).eval()
        seen = []
        module.get_submodule(module.target_layer).register_forward_hook(
            lambda m, i, out: seen.append(out.shape)
        )
        with torch.no_grad():
            assert module(clips(2, 3, 16, 112, 112)).shape == (2, 9)
        assert seen == [(2, 128, 4, 7, 7)]
        assert 300_000 < sum(p.numel() for p in module.parameters()) < 750_000

    def test_head_is_the_mean_of_the_last_map(self):
        module = lively(NarrowR2Plus1D(5, width=8))
        x = clips(2, 3, 8, 48, 48)
        with torch.no_grad():
            want = module.features(x).mean((2, 3, 4)) @ module.fc.weight.T + module.fc.bias
            torch.testing.assert_close(module(x), want)

    def test_clips_of_a_batch_do_not_mix(self):
        module = lively(NarrowR2Plus1D(5, width=8))
        x = clips(3, 3, 8, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(module(x)[1], module(x[1:2])[0], rtol=1e-4, atol=1e-6)

    def test_sees_the_order_of_frames(self):
        module = lively(NarrowR2Plus1D(5, width=8))
        nn.init.normal_(module.fc.weight)
        x = clips(1, 3, 8, 32, 32)
        with torch.no_grad():
            assert (module(x) - module(x.flip(2))).abs().max() > 1e-3

    @pytest.mark.parametrize("frames", [7, 9, 16])
    def test_takes_any_number_of_frames(self, frames):
        with torch.no_grad():
            assert NarrowR2Plus1D(5, width=4).eval()(clips(1, 3, frames, 32, 40)).shape == (1, 5)


class TestVGGLSTM:
    @pytest.mark.parametrize("detach", [False, True])
    def test_cell_follows_its_equations(self, detach):
        torch.manual_seed(0)
        cell = ReLULSTM(4, 3).double()
        nn.init.normal_(cell.h_branch.weight)
        nn.init.normal_(cell.x_branch.bias)
        x = torch.randn(2, 5, 4, dtype=torch.float64)
        w, b, u = cell.x_branch.weight, cell.x_branch.bias, cell.h_branch.weight
        for n in range(2):
            h = c = torch.zeros(3, dtype=torch.float64)
            for t in range(5):
                a = w @ x[n, t] + b + u @ h
                i, f, o = (1 / (1 + torch.exp(-a[3 * k : 3 * k + 3])) for k in range(3))
                c = f * c + i * a[9:].clamp_min(0)
                h = o * c.clamp_min(0)
                torch.testing.assert_close(cell(x, detach)[n, t], h)

    def test_detached_states_carry_no_gradient_between_steps(self):
        torch.manual_seed(0)
        cell = ReLULSTM(4, 8)
        x = torch.randn(1, 5, 4, requires_grad=True)
        (across,) = torch.autograd.grad(cell(x)[:, -1].sum(), x)
        (blocked,) = torch.autograd.grad(cell(x, detach_state=True)[:, -1].sum(), x)
        assert across[0, 0].abs().max() > 0
        assert blocked[0, :-1].abs().max() == 0 and blocked[0, -1].abs().max() > 0

    @pytest.mark.parametrize(("training", "detach", "crosses"), [(1, 1, False), (0, 1, True), (1, 0, True)])
    def test_states_are_detached_in_training_only(self, training, detach, crosses):
        torch.manual_seed(0)
        module = VGGLSTM(nn.Identity(), 3 * 4 * 4, (16, 16), 8, 5, dropout=0.0, detach_state=bool(detach))
        module.train(bool(training))
        x = clips(1, 3, 6, 4, 4).requires_grad_()
        (gradient,) = torch.autograd.grad(module.step_logits(x)[0, -1].square().sum(), x)
        assert (gradient[0, :, 0].abs().max() > 0) == crosses

    def test_answers_with_the_mean_of_the_steps_probabilities(self):
        module = lively(NarrowVGG16LSTM(5, width=4))
        x = clips(2, 3, 6, 112, 112)
        with torch.no_grad():
            steps, answer = module.step_logits(x), module(x)
        assert steps.shape == (2, 6, 5)
        torch.testing.assert_close(answer, steps.softmax(-1).mean(1))
        torch.testing.assert_close(answer.sum(1), torch.ones(2))

    def test_plays_the_clip_again_before_answering(self):
        torch.manual_seed(0)
        once = VGGLSTM(nn.Identity(), 48, (16, 16), 8, 5).eval()
        twice = VGGLSTM(nn.Identity(), 48, (16, 16), 8, 5, plays=2).eval()
        twice.load_state_dict(once.state_dict())
        x = clips(1, 3, 4, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(twice.step_logits(x), once.step_logits(x.repeat(1, 1, 2, 1, 1))[:, 4:])

    def test_narrow_shapes_and_size(self):
        module = NarrowVGG16LSTM(9).eval()
        seen = []
        module.get_submodule(module.target_layer).register_forward_hook(
            lambda m, i, out: seen.append(out.shape)
        )
        with torch.no_grad():
            assert module(clips(2, 3, 16, 112, 112)).shape == (2, 9)
        assert len(seen) == 1 and seen[0][0] == 32 and seen[0][2:] == (7, 7)  # conv5 of each frame
        assert sum(p.numel() for p in module.parameters()) < 750_000
        assert not module.detach_state

    def test_states_survive_autocast(self):
        torch.manual_seed(0)
        cell = ReLULSTM(8, 8)
        x = torch.randn(2, 16, 8).bfloat16()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            steps = cell(x)
        torch.testing.assert_close(steps, cell(x.float()).detach())

    def test_full_size_is_the_published_shape(self):
        with torch.device("meta"):
            module = VGG16LSTM(24)
            maps = module.features(torch.empty(2, 3, 224, 224))
        assert maps.shape == (2, 512, 7, 7)
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if "features" not in name}
        assert shapes == {
            "fc6.weight": (4096, 25088), "fc6.bias": (4096,),
            "fc7.weight": (4096, 4096), "fc7.bias": (4096,),
            "lstm.x_branch.weight": (1024, 4096), "lstm.x_branch.bias": (1024,),
            "lstm.h_branch.weight": (1024, 256),
            "fc8.weight": (24, 256), "fc8.bias": (24,),
        }  # fmt: skip
        assert module.dropout.p == 0.5 and module.detach_state and module.plays == 1

    def test_full_size_convolutions_are_vgg16s(self):
        from torchvision.models.vgg import cfgs, make_layers

        torch.manual_seed(0)
        theirs = make_layers(cfgs["D"])
        with torch.device("meta"):
            ours = VGG16LSTM(2)
        ours.features.to_empty(device="cpu").load_state_dict(theirs.state_dict())
        x = clips(1, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(ours.features(x), theirs(x))
        assert isinstance(ours.get_submodule(ours.target_layer), nn.ReLU)
        assert not any(getattr(part, "inplace", False) for part in ours.modules())


@pytest.mark.parametrize("make", [NarrowR2Plus1D, NarrowVGG16LSTM])
def test_every_weight_gets_a_gradient(make):
    torch.manual_seed(0)
    # Of less than 8, oneDNN 3.12 writes beyond its buffers on CPUs without AVX-512 (its issue 6035).
    module = make(5, width=8)
    output = module(clips(4, 3, 8, 112, 112))
    (output.log_softmax(1) if make is NarrowR2Plus1D else output.log())[:, 0].mean().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


class TestFiles:
    @pytest.fixture(params=[NarrowR2Plus1D, NarrowVGG16LSTM], ids=["r2plus1d", "vgg16lstm"])
    def network(self, request):
        torch.manual_seed(0)
        output = "logits" if request.param is NarrowR2Plus1D else "probability"
        module = lively(request.param(5, width=4))
        return Network(module, NAMES, lambda x: (x - 0.45) / 0.25, output, frames=16, size=112, name="small")

    def test_round_trip_is_exact(self, network, tmp_path):
        path = save_network(
            network, "small", recipe={"steps": 3}, report={"test_accuracy": 0.5}, folder=tmp_path
        )
        x = clips(1, 3, 8, 112, 112)
        for name in (path, tmp_path / "small", str(tmp_path / "small")):
            again = load_network(name)
            with torch.no_grad():
                torch.testing.assert_close(again(x), network(x), rtol=0, atol=1e-6)
        assert again.classes == NAMES and again.output == network.output
        assert (again.frames, again.size, again.name) == (16, 112, "small")
        assert not again.module.training
        again.module.get_submodule(again.target_layer)
        facts = json.loads((tmp_path / "small.json").read_text())
        assert facts["recipe"] == {"steps": 3} and facts["report"] == {"test_accuracy": 0.5}
        assert facts["preprocess"] == {"mean": [0.45] * 3, "std": [0.25] * 3}

    def test_damaged_weights_are_refused(self, network, tmp_path):
        path = save_network(network, "small", folder=tmp_path)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match="sha256"):
            load_network(path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"family": "Sequential"}, "Sequential"),
            ({"settings": {"classes": 5}}, "size mismatch"),
            ({"settings": {"classes": 6}}, "5 names for 6 outputs"),
            ({"settings": {"classes": 5, "wide": 6}}, "wide"),
            ({"classes": "waves"}, "classes"),
            ({"classes": ["waves"]}, "1 names for 5 outputs"),
        ],
    )
    def test_json_that_does_not_fit_is_refused(self, network, tmp_path, changes, message):
        path = save_network(network, "small", folder=tmp_path)
        facts = path.with_suffix(".json")
        facts.write_text(json.dumps(json.loads(facts.read_text()) | changes))
        with pytest.raises(ValueError, match=message):
            load_network(path)

    def test_missing_or_broken_json_is_refused(self, network, tmp_path):
        path = save_network(network, "small", folder=tmp_path)
        path.with_suffix(".json").write_text("{")
        with pytest.raises(ValueError, match="cannot load small"):
            load_network(path)
        path.with_suffix(".json").unlink()
        with pytest.raises(ValueError, match="cannot load small"):
            load_network(path)

    def test_a_pickle_in_disguise_is_not_run(self, network, tmp_path):
        class Payload:
            def __reduce__(self):
                return (tmp_path.joinpath("ran").write_text, ("oh",))

        path = save_network(network, "small", folder=tmp_path)
        path.write_bytes(pickle.dumps(Payload()))
        facts = path.with_suffix(".json")
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"sha256": networks._sha256(path)}))
        with pytest.raises(ValueError, match="cannot load small"):
            load_network(path)
        assert not (tmp_path / "ran").exists()

    def test_only_what_can_be_put_in_numbers_is_saved(self, tmp_path):
        module = NarrowR2Plus1D(5, width=4)
        with pytest.raises(ValueError, match="preprocess: only a scale and a shift"):
            save_network(Network(module, NAMES, lambda x: x**2), "bad", folder=tmp_path)
        with pytest.raises(ValueError, match="network: expected one that wraps NarrowR2Plus1D"):
            save_network(Network(nn.Identity(), NAMES), "bad", folder=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_preprocessing_is_read_off_per_colour(self):
        mean, std = (
            torch.tensor([0.43, 0.39, 0.37]).view(3, 1, 1, 1),
            torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1, 1),
        )
        found = Affine.of(lambda x: (x - mean.to(x)) / std.to(x))
        assert found.mean == pytest.approx((0.43, 0.39, 0.37)) and found.std == pytest.approx((0.2, 0.3, 0.4))
        assert Affine.of(None).mean == (0, 0, 0) and Affine.of(None).std == (1, 1, 1)

    def test_unknown_names_get_a_hint(self):
        with pytest.raises(ValueError, match="did you mean .*'imagenet-consensus'"):
            load_network("imagenet-consensos")
        for name in ("zzz", ""):
            with pytest.raises(ValueError, match="known: .*kinetics-s3d"):
                load_network(name)
        assert "imagenet-consensus" in available_networks() and "kinetics-mvit_v2_s" in available_networks()


SHIPPED = [name for name in available_networks() if name.startswith("stage-")]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_networks_load_and_answer(name):
    network = load_network(name)
    assert network.name == name and network.classes[-1] == "nothing"
    assert (network.frames, network.size) == (16, 112)
    assert (networks.networks_folder() / f"{name}.safetensors").stat().st_size <= 3_000_000
    with torch.no_grad():
        answer = network.probabilities(clips(2, 3, 16, 112, 112))
    torch.testing.assert_close(answer.sum(1), torch.ones(2))


class TestPretrained:
    @pytest.mark.parametrize("name", [n for n in available_networks() if n.startswith("kinetics-")])
    def test_offline_there_is_a_message_and_no_random_network(self, name, monkeypatch):
        def offline(*args, **kwargs):
            raise URLError("no route to host")

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
        monkeypatch.setattr(nn.init, "kaiming_normal_", lambda *a, **k: None)  # slow, and of no interest here
        with pytest.raises(ConnectionError, match=f"{name}: .*no route to host.*copy .*pth"):
            load_network(name)

    def test_kinetics_network_with_stand_in_weights(self, monkeypatch):
        from torchvision.models.video import mc3_18

        torch.manual_seed(0)
        weights = mc3_18(weights=None).state_dict()
        asked = {}
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: asked.update(k) or weights
        )
        network = load_network("kinetics-mc3_18")
        assert len(network.classes) == 400 and "archery" in network.classes
        assert asked["weights_only"] is True and asked["check_hash"] is True
        assert (network.frames, network.size) == (16, 112) and not network.module.training
        assert not any(getattr(part, "inplace", False) for part in network.module.modules())
        network.module.get_submodule(network.target_layer)
        x = clips(1, 3, 4, 112, 112).requires_grad_()
        (gradient,) = torch.autograd.grad(network.probabilities(x)[0, 0], x)
        assert gradient.abs().max() > 0

    @pytest.mark.parametrize(
        "enum", ["R3D_18_Weights", "S3D_Weights", "Swin3D_T_Weights", "MViT_V2_S_Weights"]
    )
    def test_kinetics_pixels_are_torchvisions(self, enum):
        from torchvision.models import video

        preset = getattr(video, enum).KINETICS400_V1.transforms()
        crop = preset.crop_size[0]
        frames = (clips(4, 3, 120, 160) * 255).to(torch.uint8)
        pixels = (frames.float() / 255).transpose(0, 1)[None].requires_grad_()
        ours = kinetics_pixels(preset, crop, pixels)
        # torchvision resizes 8-bit frames in whole grey levels
        torch.testing.assert_close(ours[0], preset(frames), rtol=0, atol=1.01 / 255 / min(preset.std))
        assert torch.autograd.grad(ours.sum(), pixels)[0].abs().max() > 0
        fitting = clips(1, 3, 4, crop, crop)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (preset.mean, preset.std))
        torch.testing.assert_close(kinetics_pixels(preset, crop, fitting), (fitting - mean) / std)
        with pytest.raises(ValueError, match="got 4 frames, expected 16"):
            kinetics_pixels(preset, crop, fitting, 16)

    def test_consensus_without_its_packages_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
        with pytest.raises(ImportError, match=r'pip install "steplab\[real\]"'):
            load_network("imagenet-consensus")

    def test_consensus_is_the_mean_over_frames(self):
        torch.manual_seed(0)
        module = FrameConsensus(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))
        x = clips(2, 3, 6, 4, 4)
        frames = torch.stack([module.frame(x[:, :, t]) for t in range(6)], 1)
        torch.testing.assert_close(module.frame_logits(x), frames)
        torch.testing.assert_close(module(x), frames.mean(1))
        torch.testing.assert_close(module(x.flip(2)), module(x))

    def test_consensus_pixels(self):
        fitting = clips(1, 3, 2, 224, 224)
        torch.testing.assert_close(consensus_pixels(fitting), (fitting * 255 - 127) / 128)
        assert consensus_pixels(clips(1, 3, 2, 60, 80)).shape == (1, 3, 2, 224, 224)
