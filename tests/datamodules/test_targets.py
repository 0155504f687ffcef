"""Masks, boxes, multilabel and JSON targets through the loaders."""

from __future__ import annotations

import pickle

import albumentations as A
import kornia.augmentation as K
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lightning_robust.datamodules import BestEffortLoader, ShardDataModule, ShardLoader
from lightning_robust.datamodules.worker import Task
from lightning_robust.errors import InputError, ShardError
from lightning_robust.seeds import derive
from lightning_robust.shards import Sample, open_index, pack

SAMPLES, HEIGHT, WIDTH, TAGS = 30, 12, 16, 7
ALL = {
    "mask": "seg.png",
    "boxes": {"member": "boxes.json", "kind": "boxes"},
    "tags": {"member": "tags.json", "kind": "multilabel", "classes": TAGS},
    "meta": "meta.json",
    "label": "cls",
}
MEMBERS = ["seg.png", "boxes.json", "tags.json", "meta.json"]
MASK = {"mask": "seg.png"}


class Truth:
    """What was packed."""

    def __init__(self, count=SAMPLES):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
        # darker pixels are class 1, so that there is something to learn
        self.masks = (self.images.mean(3) < 128).astype(np.uint8) * rng.integers(1, 3, (count, 1, 1)).astype(np.uint8)
        self.boxes = [self._boxes(rng, number % 4) for number in range(count)]
        self.labels = [rng.integers(0, 9, number % 4).tolist() for number in range(count)]
        self.tags = [sorted({number % TAGS, number % 5}) if number % 6 else [] for number in range(count)]

    @staticmethod
    def _boxes(rng, count):
        low = rng.integers(0, (WIDTH - 4, HEIGHT - 4), (count, 2))
        return np.concatenate([low, low + rng.integers(1, 5, (count, 2))], axis=1).astype(np.float32)

    def extra(self, number):
        return {
            "seg.png": self.masks[number],
            "boxes.json": {"boxes": self.boxes[number].tolist(), "labels": self.labels[number]},
            "tags.json": self.tags[number],
            "meta.json": {"number": number, "names": ["é", None, 1.5]},
        }

    def samples(self, **changes):
        for number, image in enumerate(self.images):
            settings = {"target": number % 5, "extra": self.extra(number)} | changes
            yield Sample(f"k{number:03d}", image, **settings)


@pytest.fixture(scope="module")
def truth():
    return Truth()


@pytest.fixture(scope="module")
def folder(truth, tmp_path_factory):
    path = tmp_path_factory.mktemp("targets")
    pack(truth.samples(), path, samples_per_shard=8)
    return str(path)


@pytest.fixture(scope="module")
def index(folder):
    return open_index(folder, members=MEMBERS)


def _with(folder, **extra):
    """One good sample and one whose extra members are as given."""
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    good = {"seg.png": np.zeros((HEIGHT, WIDTH), np.uint8), "a.json": [1], "boxes.json": {"boxes": [], "labels": []}}
    good["n.cls"] = b"7"
    extra = {name.replace("_", "."): value for name, value in extra.items()}
    pack([Sample("good", blank, 0, extra=good), Sample("bad", blank, 0, extra=good | extra)], folder)
    return open_index(folder, members=list(good))


# values


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_was_packed(index, truth, workers):
    seen = []
    for batch in ShardLoader(index, batch_size=4, targets=ALL, purpose="evaluate", num_workers=workers):
        ids, target = batch.ids.tolist(), batch.target
        seen += ids
        assert list(target) == list(ALL)
        assert target["mask"].dtype == target["label"].dtype == torch.int64
        np.testing.assert_array_equal(target["mask"], truth.masks[ids])
        np.testing.assert_array_equal(target["label"], np.array(ids) % 5)
        assert target["tags"].dtype == torch.float32
        np.testing.assert_array_equal(target["tags"], [[tag in truth.tags[i] for tag in range(TAGS)] for i in ids])
        assert target["meta"] == [{"number": i, "names": ["é", None, 1.5]} for i in ids]
        for found, i in zip(target["boxes"], ids, strict=True):
            assert (found["boxes"].dtype, found["labels"].dtype) == (torch.float32, torch.int64)
            np.testing.assert_array_equal(found["boxes"], truth.boxes[i])
            assert found["labels"].tolist() == truth.labels[i]
        np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1), truth.images[ids])
    assert sorted(seen) == list(range(SAMPLES))


def test_a_single_target_is_not_wrapped(index, truth):
    batch = next(iter(ShardLoader(index, batch_size=4, targets={"m": {"member": ".SEG.png", "kind": "mask"}})))
    np.testing.assert_array_equal(batch.target, truth.masks[batch.ids])


def test_without_targets_nothing_changes(folder, index):
    plain, other = ShardLoader(open_index(folder), batch_size=4), ShardLoader(index, batch_size=4)
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.target, one.ids % 5)
        assert torch.equal(two.target, one.target)
    assert type(plain._pool._maker).__name__ == "BatchMaker"


def test_masks_of_16_bits_and_of_both_depths_in_one_batch(tmp_path):
    deep = np.full((HEIGHT, WIDTH), 40_000, np.uint16)
    batch = next(iter(ShardLoader(_with(tmp_path, seg_png=deep), batch_size=2, targets=MASK, purpose="evaluate")))
    assert batch.target.unique().tolist() == [0, 40_000]


def test_a_set_without_class_numbers(truth, tmp_path):
    pack(truth.samples(target=None), tmp_path)
    index = open_index(tmp_path, label_key=None, members=["seg.png"])
    batch = next(iter(ShardLoader(index, batch_size=4, targets=MASK)))
    np.testing.assert_array_equal(batch.target, truth.masks[batch.ids])
    with pytest.raises(InputError, match="'label' is the class number, and the set was opened with label_key=None"):
        ShardLoader(index, batch_size=4, targets={"label": "cls"})


def _two_labels(truth, folder):
    samples = [
        Sample(f"k{i:03d}", image, i % 10, extra={"coarse.cls": f" {i % 3}\n".encode()})
        for i, image in enumerate(truth.images)
    ]
    pack(samples, folder)
    return str(folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_class_number_is_that_of_its_member(truth, tmp_path, workers):
    folder = _two_labels(truth, tmp_path)
    targets = {"coarse": "coarse.cls", "fine": "cls"}
    for label_key, members in [
        ("cls", ["coarse.cls"]),
        ("cls", ["coarse.cls", "cls"]),
        (None, ["coarse.cls", "cls"]),
        ("coarse.cls", ["cls"]),
    ]:
        index = open_index(folder, label_key=label_key, members=members)
        for batch in ShardLoader(index, batch_size=10, targets=targets, num_workers=workers):
            assert {name: value.dtype for name, value in batch.target.items()} == dict.fromkeys(targets, torch.int64)
            assert batch.target["coarse"].tolist() == [i % 3 for i in batch.ids.tolist()]
            assert batch.target["fine"].tolist() == [i % 10 for i in batch.ids.tolist()]
    with pytest.raises(InputError, match=r"where the members \.coarse\.cls lie: .*members=\['coarse\.cls'\]"):
        ShardLoader(open_index(folder), batch_size=10, targets=targets)
    with pytest.raises(InputError, match=r"where the members \.cls lie"):
        ShardLoader(open_index(folder, label_key="coarse.cls"), batch_size=10, targets={"fine": "cls"})


@pytest.mark.parametrize("members", [[], ["cls"]])
def test_the_class_numbers_of_a_renumbered_part_are_the_new_ones(truth, tmp_path, members):
    part = open_index(_two_labels(truth, tmp_path), members=members).with_labels([0, 3], renumber=True)
    (targets,) = {
        tuple(batch.target.tolist())
        for batch in ShardLoader(part, batch_size=len(part), purpose="evaluate", targets={"c": "cls"})
    }
    assert targets == tuple(part.labels.tolist())
    assert set(targets) == {0, 1}


@pytest.mark.parametrize("label_key", ["cls", "coarse.cls", None])
def test_a_data_module_knows_the_member_of_its_class_numbers(truth, tmp_path, label_key):
    targets = {"coarse": "coarse.cls", "fine": "cls"}
    data = ShardDataModule(
        val=_two_labels(truth, tmp_path), batch_size=10, num_workers=0, targets=targets, label_key=label_key
    )
    assert set(data.index("val").members) == {"coarse.cls", "cls"} - {label_key}
    for batch in data.val_dataloader():
        assert batch.target["coarse"].tolist() == [i % 3 for i in batch.ids.tolist()]
        assert batch.target["fine"].tolist() == [i % 10 for i in batch.ids.tolist()]


def test_parts_balance_and_targets_go_together(index, truth):
    kept = np.flatnonzero(np.arange(SAMPLES) % 5 < 2)
    part = index.with_labels([0, 1])
    for settings in ({}, {"balance": "class"}):
        for batch in ShardLoader(
            part, batch_size=4, targets=ALL | {"label": {"member": "cls", "kind": "class"}}, **settings
        ):
            ids = kept[batch.ids]
            np.testing.assert_array_equal(batch.target["mask"], truth.masks[ids])
            np.testing.assert_array_equal(batch.target["label"], ids % 5)
            if settings:
                assert batch.target["label"].bincount().tolist() == [2, 2]


def test_a_spawned_worker_gets_all_that_it_needs(index, truth):
    loader = ShardLoader(index, batch_size=2, targets=ALL)
    made = pickle.loads(pickle.dumps(loader._pool._maker))[Task(None, [3, 8], [0, 0], (HEIGHT, WIDTH, 3))]
    np.testing.assert_array_equal(made.targets["mask"], truth.masks[[3, 8]])


def test_the_command_line_takes_targets(tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(ShardDataModule, "data")
    config = tmp_path / "run.yaml"
    config.write_text("data:\n  targets: {mask: seg.png, tags: {member: tags.json, kind: multilabel, classes: 20}}\n")
    said = {"mask": "seg.png", "tags": {"member": "tags.json", "kind": "multilabel", "classes": 20}}
    assert parser.parse_args([f"--config={config}"]).data.targets == said
    assert parser.parse_args(["--data.targets.mask", "seg.png"]).data.targets == {"mask": "seg.png"}


# geometry


def test_image_size_takes_masks_and_boxes_along(index, truth):
    for batch in ShardLoader(index, batch_size=5, targets=ALL, image_size=8, purpose="evaluate"):
        for row, sample in enumerate(batch.ids.tolist()):
            # 12 x 16 covers 8 x 8 at 2/3: 8 x 11, of which columns 1 to 8 are left
            source = np.minimum((2 * np.arange(11) + 1) * 16 // 22, 15)[1:9]
            expected = truth.masks[sample][((2 * np.arange(8) + 1) * 12 // 16)][:, source]
            np.testing.assert_array_equal(batch.target["mask"][row], expected)
            boxes = truth.boxes[sample] * np.array([11 / 16, 8 / 12] * 2) - np.array([1, 0] * 2)
            boxes = boxes.clip(0, 8)
            kept = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
            np.testing.assert_allclose(batch.target["boxes"][row]["boxes"], boxes[kept], atol=1e-5)
            assert batch.target["boxes"][row]["labels"].tolist() == np.array(truth.labels[sample])[kept].tolist()


def _augmentation(**settings):
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.RandomCrop(8, 10),
            A.RandomRotate90(p=0.5),
            A.PadIfNeeded(10, 10, position="top_left"),
        ],
        **settings,
    )


def test_sample_transform_takes_masks_and_boxes_along(index, truth):
    params = A.BboxParams(format="pascal_voc", label_fields=["kinds"])
    reference = _augmentation(bbox_params=params)
    loader = ShardLoader(
        index, batch_size=5, targets=ALL, sample_transform=_augmentation(bbox_params=params), num_workers=2, seed=3
    )
    moved = 0
    for batch in loader:
        for row, i in enumerate(batch.ids.tolist()):
            reference.set_random_seed(int(derive(np.array([i]), "sample transform", 3, 0)[0]) & ((1 << 63) - 1))
            kinds = np.array(truth.labels[i], np.int64)
            done = reference(image=truth.images[i], mask=truth.masks[i], bboxes=truth.boxes[i], kinds=kinds)
            np.testing.assert_array_equal(batch.image[row].permute(1, 2, 0), done["image"])
            np.testing.assert_array_equal(batch.target["mask"][row], done["mask"])
            expected = np.array(done["bboxes"], np.float32).reshape(-1, 4)
            np.testing.assert_allclose(batch.target["boxes"][row]["boxes"], expected, atol=1e-5)
            assert batch.target["boxes"][row]["labels"].tolist() == np.array(done["kinds"]).tolist()
            moved += done["mask"].shape != truth.masks[i].shape
    assert moved


def test_several_masks_go_through_one_augmentation(truth, tmp_path):
    both = [
        Sample(f"k{i}", truth.images[i], 0, extra={"a.png": truth.masks[i], "b.png": truth.masks[i] + 5})
        for i in range(8)
    ]
    index = pack(both, tmp_path)
    loader = ShardLoader(index, batch_size=8, targets={"a": "a.png", "b": "b.png"}, sample_transform=A.RandomCrop(6, 6))
    (batch,) = loader
    assert torch.equal(batch.target["b"], batch.target["a"] + 5)
    assert batch.target["a"].shape == (8, 6, 6)


def test_the_augmentation_of_images_is_the_same_with_targets(folder, index):
    plain = ShardLoader(open_index(folder), batch_size=5, sample_transform=_augmentation())
    masked = ShardLoader(index, batch_size=5, targets=MASK, sample_transform=_augmentation())
    assert all(torch.equal(one.image, two.image) for one, two in zip(plain, masked, strict=True))


# what is refused


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({}, "names no target"),
        ("seg.png", "targets='seg.png' names no target: give {'mask': 'seg.png'}"),
        ({"m": {"member": "seg.png", "kind": "boxes"}}, "'m' is to be boxes and its member ends in '.png'"),
        ({"m": {"member": "seg.json", "kind": "mask"}}, "'m' is to be mask and its member ends in '.json'"),
        ({"image": "seg.png"}, "cannot be named 'image'"),
        ({"x": "seg.tif"}, "kind of the target 'x' cannot be told from '.seg.tif'"),
        ({"x": {"kind": "mask"}}, "give the extension of its member"),
        ({"x": {"member": "a.png", "size": 3}}, "give the extension of its member"),
        ({"x": 5}, "give the extension of its member"),
        ({"x": {"member": "a.png", "kind": "depth"}}, "is 'depth': give one of"),
        ({"x": {"member": "a.json", "kind": "multilabel"}}, "needs the number of its classes"),
        ({"x": {"member": "a.json", "kind": "multilabel", "classes": 0}}, "has classes=0"),
        ({"x": {"member": "a.json", "classes": 3}}, "of kind 'json' has classes=3"),
        ({"x": {"member": "a.png", "ignore": 255}}, "has ignore=255"),
        ({"x": "other.png"}, r"where the members \.other\.png lie: open it with open_index\(\.\.\., members="),
    ],
)
def test_targets_that_make_no_sense(index, targets, said):
    with pytest.raises(InputError, match=said):
        ShardLoader(index, batch_size=4, targets=targets)


@pytest.mark.parametrize(
    "transform",
    [
        _augmentation(),
        A.HorizontalFlip(),
        _augmentation(bbox_params=A.BboxParams(format="coco", label_fields=["labels"])),
        _augmentation(bbox_params=A.BboxParams(format="pascal_voc")),
    ],
)
def test_a_sample_transform_that_cannot_move_boxes(index, transform):
    with pytest.raises(InputError, match=r'bbox_params=A\.BboxParams\(format="pascal_voc", label_fields'):
        ShardLoader(index, batch_size=4, targets=ALL, sample_transform=transform)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"bbox_params": A.BboxParams(format="pascal_voc", label_fields=["kinds"])},
            r"label_fields=\['kinds'\], of boxes",
        ),
        ({"keypoint_params": A.KeypointParams(format="xy", label_fields=["kinds"])}, "leave bbox_params and keypoint_"),
    ],
)
def test_a_sample_transform_that_asks_for_what_no_target_is(folder, index, settings, said):
    transform = _augmentation(**settings)
    with pytest.raises(InputError, match=said):
        ShardLoader(index, batch_size=4, targets=MASK, sample_transform=transform)
    with pytest.raises(InputError, match=said):
        ShardLoader(index, batch_size=4, sample_transform=transform)
    with pytest.raises(InputError, match=said):
        BestEffortLoader(folder, batch_size=4, epoch_batches=1, sample_transform=transform)
    # without labels, Albumentations asks for nothing
    unlabeled = _augmentation(bbox_params=A.BboxParams(format="pascal_voc"))
    assert len(next(iter(ShardLoader(index, batch_size=4, targets=MASK, sample_transform=unlabeled))).ids) == 4


def test_two_targets_of_boxes_and_a_sample_transform(index):
    two = {name: {"member": "boxes.json", "kind": "boxes"} for name in ("a", "b")}
    params = A.BboxParams(format="pascal_voc", label_fields=["labels"])
    with pytest.raises(InputError, match="'a', 'b' are boxes"):
        ShardLoader(index, batch_size=4, targets=two, sample_transform=_augmentation(bbox_params=params))


def _upper_rows(mask, **_):
    return mask[:4]


def test_a_sample_transform_that_makes_no_mask(index):
    odd = A.Compose([A.Lambda(mask=_upper_rows, name="odd", p=1)])
    with pytest.raises(InputError, match=r"made uint8 \(4, 16\) of the mask 'mask' and an image of 12 x 16"):
        next(iter(ShardLoader(index, batch_size=4, targets=MASK, sample_transform=odd)))


_TAGS = {"x": {"member": "a.json", "kind": "multilabel", "classes": 3}}
_BOXES = {"x": {"member": "boxes.json", "kind": "boxes", "classes": 3}}
_NUMBER = {"x": "n.cls"}
_CLASSES = {"x": {"member": "seg.png", "classes": 3, "ignore": 255}}


def _box(*box, labels=(0,)):
    return {"boxes": [list(box)], "labels": list(labels)}


@pytest.mark.parametrize(
    ("targets", "extra", "said"),
    [
        (MASK, {"seg_png": np.zeros((3, 4), np.uint8)}, "has 3 x 4 pixels .* and its image 12 x 16"),
        (MASK, {"seg_png": b"no png"}, "cannot be decoded: no PNG begins"),
        (_CLASSES, {"seg_png": np.full((HEIGHT, WIDTH), 3, np.uint8)}, "class 3; expected 0 to 2 and 255"),
        ({"x": "a.json"}, {"a_json": b"[1, "}, "is not JSON"),
        ({"x": "a.json"}, {"a_json": b"[" * 40 + b"]" * 40}, "nested more than 32"),
        ({"x": "a.json"}, {"a_json": b" " * (5 << 20)}, "has 5242880 bytes; the limit is 4194304"),
        ({"x": "a.json"}, {"a_json": b""}, "it has 0 bytes, expected 1"),
        (_NUMBER, {"n_cls": b"-1"}, "holds b'-1', not a class number"),
        (_NUMBER, {"n_cls": b"1" * 19}, "not a class number"),
        (_NUMBER, {"n_cls": b"1" * 33}, r"'\.\.\., not a class number"),
        (_NUMBER, {"n_cls": "\u0661".encode()}, "not a class number"),
        (_TAGS, {"a_json": [0, 3]}, "class 3; expected 0 to 2"),
        (_TAGS, {"a_json": [-1]}, "class -1; expected 0 to 2"),
        (_TAGS, {"a_json": [[1]]}, "not a list of class numbers"),
        (_TAGS, {"a_json": [True]}, "not a list of class numbers"),
        (_TAGS, {"a_json": [10**30]}, "not a list of class numbers"),
        (_TAGS, {"a_json": {"0": 1}}, "not a list of class numbers"),
        (_BOXES, {"boxes_json": [[0, 0, 1, 1]]}, 'not an object with "boxes" and "labels"'),
        (_BOXES, {"boxes_json": {"boxes": [[0, 0, 1]], "labels": [0]}}, "not a list of boxes"),
        (_BOXES, {"boxes_json": _box(0, 0, "1", 1)}, "not a list of boxes"),
        (_BOXES, {"boxes_json": _box(0, 0, 10**400, 1)}, "not a list of boxes"),
        (_BOXES, {"boxes_json": _box(0, 0, 1, 1, labels=[0, 1])}, "not a list of 1 class numbers"),
        (_BOXES, {"boxes_json": _box(0, 0, 1, 1, labels=[0.0])}, "not a list of 1 class numbers"),
        (_BOXES, {"boxes_json": _box(0, 0, 1, 1, labels=[3])}, "class 3; expected 0 to 2"),
        (_BOXES, {"boxes_json": _box(2, 0, 2, 1)}, "expected x0 < x1 and y0 < y1"),
        (_BOXES, {"boxes_json": _box(0, 0, 1e300, 1)}, "expected x0 < x1 and y0 < y1"),
        (_BOXES, {"boxes_json": _box(16, 0, 17, 1)}, "a part of it within its image of 12 x 16"),
    ],
)
def test_a_bad_target_is_a_bad_sample(tmp_path, targets, extra, said):
    index = _with(tmp_path, **extra)
    named = r"member '\.[a-z.]+' of sample 1 \('bad\.[a-z.]+'\) of shard '.*shard-000000\.tar'"
    with pytest.raises(ShardError, match=f"(?s){named}.*{said}|{said}.*{named}") as raised:
        list(ShardLoader(index, batch_size=2, targets=targets, purpose="evaluate", num_workers=0))
    loader = ShardLoader(index, batch_size=2, targets=targets, on_error="skip")
    with pytest.warns(UserWarning, match="replaced by the next good one"):
        (batch,) = loader
    assert batch.ids.tolist() == [0, 0]
    assert len(batch.target) == 2
    assert loader.skipped == {1: str(raised.value)}


def test_values_that_are_allowed(tmp_path):
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    index = _with(tmp_path, seg_png=mask, boxes_json=_box(-3, 2.5, 4, 99))
    (batch,) = ShardLoader(index, batch_size=2, targets=_CLASSES, purpose="evaluate")
    assert batch.target[1].unique().tolist() == [255]
    (batch,) = ShardLoader(index, batch_size=2, targets=_BOXES, purpose="evaluate")
    assert batch.target[0]["boxes"].shape == (0, 4)
    assert batch.target[1]["boxes"].tolist() == [[0, 2.5, 4, 12]]  # cut off at the border of the image


def test_a_sample_without_the_member(truth, tmp_path):
    samples = list(truth.samples())
    samples[3] = Sample("k003", truth.images[3], 0)
    index = pack(samples, tmp_path)
    with pytest.raises(ShardError, match=r"sample 3 \('k003\.png'\) of shard .* has no member '\.seg\.png'"):
        list(ShardLoader(index, batch_size=4, targets=MASK, purpose="evaluate", num_workers=2))
    loader = ShardLoader(index, batch_size=30, targets=MASK, on_error="skip")
    with pytest.warns(UserWarning, match="replaced by the next good one"):
        (batch,) = loader
    # the sample that took its place came whole
    assert sorted(batch.ids.tolist()) == sorted([*range(3), *range(4, 30), 4])
    np.testing.assert_array_equal(batch.target, truth.masks[batch.ids])
    np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1), truth.images[batch.ids])


# in a Trainer


class Segmenter(pl.LightningModule):
    def __init__(self, stop_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.stop_at = nn.Conv2d(3, 3, 1), stop_at
        self.losses, self.seen = [], []

    def training_step(self, batch):
        if self.trainer.global_step == self.stop_at:
            raise KeyError("killed")
        image, mask = batch
        loss = nn.functional.cross_entropy(self.net(image), mask)
        self.losses.append(loss.item())
        self.seen.append((self.trainer.datamodule.batch_ids.tolist(), image.clone(), mask.clone()))
        return loss

    def validation_step(self, batch):
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), batch_size=len(batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def _trainer(path, **settings):
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=path, **(defaults | settings))


def test_a_segmentation_module_learns(folder, truth, tmp_path):
    data = ShardDataModule(train=folder, val=folder, batch_size=10, num_workers=2, targets=MASK, label_key=None)
    net, trainer = Segmenter(), _trainer(tmp_path, max_epochs=6)
    trainer.fit(net, data)
    assert np.mean(net.losses[-3:]) < 0.8 * np.mean(net.losses[:3])
    for ids, image, mask in net.seen:
        assert mask.dtype == torch.int64
        np.testing.assert_array_equal(mask, truth.masks[ids])
        np.testing.assert_array_equal(image, truth.images[ids].transpose(0, 3, 1, 2) / np.float32(255))


def test_a_multilabel_module_learns(folder, truth, tmp_path):
    class Tagger(Segmenter):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * HEIGHT * WIDTH, TAGS))

        def training_step(self, batch):
            assert set(batch) == {"image", "tags", "index"}
            loss = nn.functional.binary_cross_entropy_with_logits(self.net(batch["image"]), batch["tags"])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    data = ShardDataModule(
        train=folder, batch_size=10, num_workers=2, targets={"tags": ALL["tags"]}, batch_format="dict"
    )
    net = Tagger()
    _trainer(tmp_path, max_epochs=8).fit(net, data)
    assert np.mean(net.losses[-3:]) < 0.8 * np.mean(net.losses[:3])


def test_boxes_and_json_reach_the_step(folder, truth, tmp_path):
    class Detector(Segmenter):
        def training_step(self, batch):
            image, target = batch
            ids = self.trainer.datamodule.batch_ids.tolist()
            assert [found["labels"].tolist() for found in target["boxes"]] == [truth.labels[i] for i in ids]
            assert [value["number"] for value in target["meta"]] == ids
            self.seen += ids
            return self.net(image).mean()

    net = Detector()
    data = ShardDataModule(train=folder, batch_size=10, num_workers=0, targets=ALL)
    _trainer(tmp_path, max_epochs=1).fit(net, data)
    assert sorted(net.seen) == list(range(SAMPLES))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_with_targets_goes_on_where_it_was_killed(folder, tmp_path):
    def data():
        transform = A.Compose([A.HorizontalFlip(), A.RandomCrop(8, 8)])
        kornia = K.AugmentationSequential(K.RandomVerticalFlip(p=0.5), data_keys=["input", "mask"])
        return ShardDataModule(
            train=folder, batch_size=5, num_workers=0, targets=MASK, sample_transform=transform, batch_transform=kornia
        )

    whole = Segmenter()
    _trainer(tmp_path / "whole").fit(whole, data())
    save = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    with pytest.raises(KeyError, match="killed"):
        _trainer(tmp_path, callbacks=[save], enable_checkpointing=True).fit(Segmenter(stop_at=8), data())
    resumed = Segmenter()
    again = ModelCheckpoint(tmp_path / "resumed", save_last=True, every_n_train_steps=1)
    trainer = _trainer(tmp_path, callbacks=[again], enable_checkpointing=True)
    trainer.fit(resumed, data(), ckpt_path=tmp_path / "last.ckpt")
    assert len(resumed.seen) == len(whole.seen) - 8
    for (ids, image, mask), (same_ids, same_image, same_mask) in zip(resumed.seen, whole.seen[8:], strict=True):
        assert ids == same_ids
        assert torch.equal(image, same_image)
        assert torch.equal(mask, same_mask)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_batch_transform_takes_the_mask_along(folder, truth, tmp_path):
    flip = K.AugmentationSequential(K.RandomHorizontalFlip(p=1.0), K.RandomInvert(p=1.0), data_keys=["input", "mask"])
    data = ShardDataModule(train=folder, batch_size=10, num_workers=0, targets=MASK, batch_transform=flip)
    net = Segmenter()
    _trainer(tmp_path, max_epochs=1).fit(net, data)
    for ids, image, mask in net.seen:
        np.testing.assert_array_equal(mask, truth.masks[ids][:, :, ::-1])
        flipped = truth.images[ids][:, :, ::-1].transpose(0, 3, 1, 2) / 255
        np.testing.assert_allclose(image, 1 - flipped, atol=1e-6)


def test_batch_transform_takes_the_mask_of_several_targets(folder, truth, tmp_path):
    class Both(Segmenter):
        def training_step(self, batch):
            image, target = batch
            ids = self.trainer.datamodule.batch_ids.tolist()
            np.testing.assert_array_equal(target["mask"], truth.masks[ids][:, ::-1])
            assert target["label"].tolist() == [i % 5 for i in ids]
            self.seen.append(ids)
            return self.net(image).mean()

    flip = K.AugmentationSequential(K.RandomVerticalFlip(p=1.0), data_keys=["input", "mask"])
    net, targets = Both(), {"mask": "seg.png", "label": "cls"}
    _trainer(tmp_path, max_epochs=1).fit(
        net, ShardDataModule(train=folder, batch_size=10, num_workers=0, targets=targets, batch_transform=flip)
    )
    assert len(net.seen) == 3


@pytest.mark.parametrize(
    ("transform", "targets", "said"),
    [
        (K.RandomHorizontalFlip(), MASK, r"moves pixels \(RandomHorizontalFlip\) and would leave the target 'mask'"),
        (nn.Sequential(K.ColorJitter(), K.RandomElasticTransform()), MASK, r"moves pixels \(RandomElasticTransform\)"),
        (K.RandomMosaic((4, 4)), _BOXES, r"moves pixels \(RandomMosaic\) and would leave the target 'x'"),
        (K.AugmentationSequential(K.RandomCrop((4, 4)), data_keys=["input", "mask"]), ALL, "leave the target 'boxes'"),
        (K.AugmentationSequential(K.RandomCrop((4, 4)), data_keys=["input", "bbox_xyxy"]), _BOXES, "one mask can be"),
        (K.AugmentationSequential(K.RandomCrop((4, 4)), data_keys=["input", "mask", "mask"]), MASK, "one mask can be"),
        (K.AugmentationSequential(K.RandomCrop((4, 4)), data_keys=["input", "mask"]), _TAGS, "one mask can be"),
        (K.RandomMixUpV2(), _TAGS, r"mixes images \(RandomMixUpV2\) and would leave the target 'x' unmixed"),
        (nn.Sequential(K.RandomCutMixV2(use_correct_lambda=True)), {"y": "cls"}, r"\(RandomCutMixV2\) .* 'y' unmixed"),
        (K.RandomTransplantation(), MASK | {"y": "cls"}, r"mixes images \(RandomTransplantation\) .* 'y' unmixed"),
    ],
)
def test_a_batch_transform_that_leaves_targets_behind(transform, targets, said):
    with pytest.raises(InputError, match=said):
        ShardDataModule(train="x", targets=targets, batch_transform=transform)


def test_a_batch_transform_of_colors_goes_with_masks_and_boxes():
    ShardDataModule(train="x", targets=ALL, batch_transform=nn.Sequential(K.ColorJitter(), K.RandomErasing()))
    ShardDataModule(train="x", targets={"tags": ALL["tags"]}, batch_transform=K.RandomHorizontalFlip())
    ShardDataModule(train="x", targets={"tags": ALL["tags"]}, batch_transform=K.RandomJigsaw())
    ShardDataModule(train="x", targets=MASK, batch_transform=K.RandomTransplantation())


def test_unindexed_sets_have_no_targets():
    with pytest.raises(InputError, match=r"unindexed=\('train',\) and targets=.* found through an index"):
        ShardDataModule(train="x", unindexed=("train",), epoch_batches=3, targets=MASK)
