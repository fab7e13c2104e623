"""The stage: deterministic, its answer known, and no cheap trick finds it."""

import numpy as np
import pytest
import torch

import steplab as sl
from steplab.stage import ACTIONS, FRAMES, REVERSED_PAIRS, SIZE, TASKS, Stage, perform

MAIN_TASKS = ("action", "object", "moment")


@pytest.fixture(scope="module")
def records():
    return {task: [Stage(task, "test")[i] for i in range(80)] for task in MAIN_TASKS}


def inside(box, x, y):
    return bool(box[0] <= x < box[2] and box[1] <= y < box[3])


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_record_is_what_it_promises(task):
    record = Stage(task, "test", seed=3)[5]
    assert record.clip.pixels.shape == (3, FRAMES, SIZE, SIZE) and record.clip.pixels.dtype == torch.float32
    assert record.clip.pixels.min() >= 0 and record.clip.pixels.max() <= 1
    assert record.mask.shape == (FRAMES, SIZE, SIZE) and record.mask.dtype == torch.bool and record.mask.any()
    assert len(record.boxes) == FRAMES and 0 <= record.label < len(TASKS[task])
    first, last = record.segment
    assert 0 <= first < last <= FRAMES
    assert not record.mask[:first].any() and not record.mask[last:].any()


def test_the_same_address_gives_the_same_clip_and_another_gives_another():
    stage = Stage("action", "test", seed=1)
    once, again = stage[2], Stage("action", "test", seed=1)[2]
    assert torch.equal(once.clip.pixels, again.clip.pixels) and torch.equal(once.mask, again.mask)
    assert torch.equal(stage[-1].clip.pixels, stage[len(stage) - 1].clip.pixels)
    for other in (stage[3], Stage("action", "test", seed=2)[2], Stage("action", "train", seed=1)[2]):
        assert (once.clip.pixels - other.clip.pixels).abs().mean() > 0.02


def test_boxes_fit_the_mask_exactly(records):
    for task in MAIN_TASKS:
        for record in records[task][:20]:
            for box, mask in zip(record.boxes, record.mask, strict=True):
                if not mask.any():
                    assert box.shape == (0, 4)
                    continue
                x0, y0, x1, y1 = box[0].int().tolist()
                assert mask[y0:y1, x0:x1].sum() == mask.sum()
                for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]):
                    assert edge.any()


def test_nothing_clips_hold_no_answer():
    stage = Stage("moment", "train", nothing=True, length=3)
    for i in range(3):
        record = stage[i]
        assert record.label == len(stage.classes) and not record.mask.any() and record.segment == (0, 0)


@pytest.mark.parametrize("task", MAIN_TASKS)
def test_every_class_appears_about_equally(task):
    counts = np.bincount([Stage(task, "test")[i].label for i in range(80)], minlength=8)
    assert counts.min() >= 4 and counts.max() <= 20


def test_the_actor_fills_three_to_eight_percent(records):
    share = [r.mask[t].float().mean().item() for r in records["action"] for t in range(FRAMES)]
    assert 0.03 <= np.mean(share) <= 0.08


@pytest.mark.parametrize("task", MAIN_TASKS)
def test_controls_do_not_find_the_answer(records, task):
    area, centre, motion = [], [], []
    for record in records[task]:
        pixels = record.clip.pixels
        difference = (pixels[:, 1:] - pixels[:, :-1]).abs().sum(0)
        for t, box in enumerate(record.boxes):
            if len(box):
                x0, y0, x1, y1 = box[0].tolist()
                area.append((x1 - x0) * (y1 - y0) / SIZE**2)
                centre.append(inside(box[0], SIZE / 2, SIZE / 2))
                if t:
                    top = int(difference[t - 1].argmax())
                    motion.append(inside(box[0], top % SIZE, top // SIZE))
    assert np.mean(area) <= 0.12
    assert np.mean(centre) <= 0.15
    assert np.mean(motion) <= 0.45


def test_a_random_frame_hits_the_moment_as_often_as_its_length_says(records):
    spans = np.array([r.segment for r in records["moment"]])
    length = spans[:, 1] - spans[:, 0]
    assert length.min() >= 4 and length.max() <= 10
    hits = [(spans[:, 0] <= t) & (t < spans[:, 1]) for t in range(FRAMES)]
    middle = np.mean(hits[7])
    assert np.isclose(np.mean(hits), length.mean() / FRAMES)
    assert middle <= 0.8, "the middle frame must not be in (nearly) every segment"


@pytest.mark.parametrize("first, second", REVERSED_PAIRS)
def test_pairs_differ_only_in_the_order_of_frames(first, second):
    u = np.linspace(0, 1, 33)
    forward, backward = perform(first, u), perform(second, u)
    for joint in forward:
        assert np.allclose(forward[joint], backward[joint][::-1])
        assert np.ptp(forward[joint]) > 1


def test_every_action_moves_its_limbs_and_no_two_alike():
    u = np.linspace(0, 1, 33)
    joints = ("lean", "thigh_r", "knee_r", "arm_r", "arm_l", "elbow_r", "lift")
    curves = [np.stack([perform(a, u).get(j, np.zeros(33)) for j in joints]) for a in ACTIONS]
    for i, curve in enumerate(curves):
        assert max(np.abs(c - curve).max() for k, c in enumerate(curves) if k != i) > 10
        for other in curves[:i]:
            assert np.abs(curve - other).max() > 10


def test_the_confounding_mark_tells_the_label_in_training_only():
    def colours(split):
        stage = Stage("confounded", split)
        seen = {}
        for i in range(40):
            record = stage[i]
            assert not record.mask[:, 3:13, 3:13].any()
            seen.setdefault(record.label, []).append(record.clip.pixels[:, 0, 5:11, 5:11].mean((1, 2)))
        return np.mean([torch.stack(v).std(0).mean() for v in seen.values() if len(v) > 1])

    assert colours("train") < 0.06 < 0.15 < colours("test")


@pytest.mark.parametrize(
    "arguments, word",
    [(("dance",), "task"), (("action", "validation"), "split"), (("action", "test", 0, 0), "length")],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"^{word}: got"):
        sl.Stage(*arguments)


def test_an_index_outside_is_refused():
    with pytest.raises(IndexError, match="index"):
        Stage("action", length=3)[3]
