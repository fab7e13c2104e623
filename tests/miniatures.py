"""Clips of the stage laid out on disk as the data sets of the literature are, small."""

import pickle

import numpy as np
import torch

from steplab import Stage
from steplab.clips import write_video
from steplab.ucf101 import UCF101_24

FPS = 8


def clips(task, classes, count, split="test", seed=0):
    """The first `count` clips of each of the classes (names), class after class."""
    stage, wanted = Stage(task, split, seed), {name: [] for name in classes}
    numbers, k = {stage.classes.index(name): name for name in classes}, 0
    while any(len(some) < count for some in wanted.values()):
        if (record := stage[k]).label in numbers:
            wanted[numbers[record.label]].append(record)
        k += 1
    return [record for some in wanted.values() for record in some[:count]]


def ucf101(root, train=4, test=2, actions=("waves", "kicks"), ending="mp4"):
    """Each action under the name of a sport: `<Class>/v_*.mp4`, boxes in 320 x 240, a list of tests."""
    facts, listed = {}, []
    for split, count in (("train", train), ("test", test)):
        for k, record in enumerate(clips("action", actions, count, split)):
            label = k // count
            name = (
                f"{UCF101_24[label]}/v_{UCF101_24[label]}_g{(split == 'train') + 1:02d}_c{k % count + 1:02d}"
            )
            path = root / f"{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, record.clip.pixels, FPS)
            found = np.stack([boxes[0].numpy() for boxes in record.boxes]) * ([320 / 112, 240 / 112] * 2)
            found = np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], 1).round().astype(np.uint16)
            tube = {"label": label, "sf": 0, "ef": len(found), "boxes": found}
            facts[name] = {"annotations": [tube], "numf": len(found), "label": label}
            listed += [f"{name}.avi"] if split == "test" else []
    (root / "pyannot.pkl").write_bytes(pickle.dumps(facts))
    (root / "testlist01.txt").write_text("\n".join(listed) + "\n")
    return root


def epic(root, objects=("fish", "key"), actions=("waves", "kicks"), count=7):
    """An mp4 for each object, its box every half a second, and for each action amid background."""
    notes = root / "annotations"
    notes.mkdir(parents=True)
    info, boxes, labels = [], [], []
    for k, record in enumerate(clips("object", objects, count)):
        video = f"P01_{k:02d}"
        _film(root, video, record.clip.pixels, info)
        text = {}
        for frame in range(1, 121, 30):  # at 60 a second
            for x0, y0, x1, y1 in record.boxes[(frame - 1) * FPS // 60].int().tolist():
                text[frame] = [(y0, x0, y1 - y0, x1 - x0)]
        boxes.append(f'{k},{video},{objects[k // count]},{k // count},hold,1,120,"{text}"')
    still = Stage("action", "test", 0, nothing=True)
    for k, record in enumerate(clips("action", actions, count)):
        video = f"P02_{k:02d}"
        parts = [still[2 * k].clip.pixels, record.clip.pixels, still[2 * k + 1].clip.pixels]
        _film(root, video, torch.cat(parts, 1), info)
        labels.append(f"{100 + k},P02,{video},121,240,do,{k // count},it,0")
    for name, header, lines in (
        ("EPIC_video_info.csv", "video,resolution,duration,fps", info),
        ("EPIC_verb_classes.csv", "verb_id,class_key,verbs", [f"{k},{a},x" for k, a in enumerate(actions)]),
        (
            "EPIC_train_action_labels.csv",
            "uid,participant_id,video_id,start_frame,stop_frame,verb,verb_class,noun,noun_class",
            labels,
        ),
        (
            "Valid_seg_top20.csv",
            "seg_id,video_id,noun,noun_label,verb,start_frame,stop_frame,bounding_boxes",
            boxes,
        ),
    ):
        (notes / name).write_text("\n".join([header, *lines]) + "\n")
    return root


def _film(root, video, pixels, info):
    path = root / "videos/train" / video[:3] / f"{video}.MP4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, pixels, FPS)
    info.append(f"{video},112x112,{pixels.shape[1] / FPS},{FPS}")
