"""What a loader worker does where samples have targets of their own: image and targets go together all the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_robust.datamodules.geometry import Boxes, Pixels, Size, clip_boxes, fit_boxes, fit_image, fit_mask
from lightning_robust.datamodules.skipped import OnError
from lightning_robust.datamodules.target_values import Value, decode_target, pack_targets
from lightning_robust.datamodules.targets import Target, Targets
from lightning_robust.datamodules.worker import BatchMaker, Decoded, SampleTransform, checked_pixels
from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import ShardIndex


def check_sample_transform(transform: SampleTransform | None, targets: Targets | None) -> None:
    """Refuse a sample transform that would leave boxes where they are, mix them up, or ask for some that are not there.

    Raises:
        InputError: it has no parameters for boxes, or others than are needed; it has some and no target is boxes.
    """
    if transform is None:
        return
    names = [] if targets is None else targets.of_kind("boxes")
    fields = _label_fields(transform, "keypoints") + ([] if names else _label_fields(transform, "bboxes"))
    if fields:
        raise InputError(
            f"sample_transform asks for label_fields={fields}, of boxes or key points, which no target holds: leave "
            "bbox_params and keypoint_params out of A.Compose, or give a target of kind 'boxes'."
        )
    if not names:
        return
    if len(names) > 1:
        raise InputError(
            f"sample_transform can move the boxes of one target, and {', '.join(map(repr, names))} are boxes: pack "
            "them into one member, or leave sample_transform out."
        )
    params = _parameters(transform, "bboxes")
    if params is None or params.format != "pascal_voc" or len(_label_fields(transform, "bboxes")) != 1:
        raise InputError(
            f"sample_transform must move the boxes of the target {names[0]!r} with their labels: give A.Compose([...], "
            'bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"])).'
        )


def transform_sample(
    transform: SampleTransform, image: Pixels, values: dict[str, Value], targets: Targets, seed: int
) -> tuple[Pixels, dict[str, Value]]:
    """Augment an image with its masks and boxes.

    Args:
        transform: Albumentations transform.
        image: uint8, (H, W, C).
        values: targets of the sample by name.
        targets: which of them are masks and boxes.
        seed: of the transform's random numbers.

    Raises:
        InputError: if it returns anything but such an image and masks of its size.
    """
    transform.set_random_seed(seed)
    masks, boxes = targets.of_kind("mask"), targets.of_kind("boxes")
    given: dict[str, Any] = {"image": image}
    if len(masks) == 1:
        given["mask"] = values[masks[0]]
    elif masks:
        given["masks"] = [values[name] for name in masks]
    label_field = ""
    if boxes:
        label_field = _label_fields(transform, "bboxes")[0]
        given |= {"bboxes": values[boxes[0]].boxes, label_field: values[boxes[0]].labels}
    done = transform(**given)
    image = checked_pixels(done["image"])
    values = values | dict(zip(masks, [done["mask"]] if len(masks) == 1 else done.get("masks", []), strict=True))
    _check_masks({name: values[name] for name in masks}, image.shape[:2])
    if boxes:
        # of no boxes at all, Albumentations makes lists
        corners = np.asarray(done["bboxes"], dtype=np.float32).reshape(-1, 4)
        labels = np.asarray(done[label_field], dtype=np.int64).reshape(-1)
        values[boxes[0]] = clip_boxes(Boxes(corners, labels), (image.shape[0], image.shape[1]))
    return image, values


def make_maker(index: ShardIndex, targets: Targets | None, **settings: Any) -> BatchMaker:
    """Make what makes batches: with the class numbers of the index alone, or with targets that are read.

    Args:
        index: the shards.
        targets: what batches have in place of the class number, if anything.
        settings: those of :class:`BatchMaker`.

    Raises:
        InputError: the index does not say where the targets are, or the sample transform cannot take them along.
    """
    check_sample_transform(settings["sample_transform"], targets)
    if targets is None:
        return BatchMaker(index, **settings)
    targets = targets.of_index(index)
    return TargetBatchMaker(index, targets=targets, **settings)


class TargetBatchMaker(BatchMaker):
    """Reads, decodes, transforms and collates samples with targets that are read from their members.

    A sample whose target cannot be read is a bad sample, as one whose image cannot be.

    Args:
        index: the shards, opened with the members.
        targets: what is read.
        seed: seed of the run.
        image_size: height and width that every image is brought to, with its masks and boxes, or None.
        sample_transform: Albumentations transform, or None.
        on_error: what to do with a sample that cannot be read or decoded.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        targets: Targets,
        seed: int,
        image_size: tuple[int, int] | None,
        sample_transform: SampleTransform | None,
        on_error: OnError,
    ) -> None:
        super().__init__(index, seed=seed, image_size=image_size, sample_transform=sample_transform, on_error=on_error)
        self._targets = targets

    def _decode(self, sample: int, payload: bytes) -> Decoded:
        image = super()._decode(sample, payload).image
        size = (image.shape[0], image.shape[1])
        return Decoded(image, {target.name: self._read(target, sample, size) for target in self._targets.read})

    def _read(self, target: Target, sample: int, image_size: Size) -> Value:
        data = self._reader.read_member(target.member, sample)
        try:
            return decode_target(target, data, image_size, "")
        except ShardError:
            # naming the sample costs a read, so it is done only for one that fails
            where = f"The member '.{target.member}' of {self._index.describe(sample)}"
            return decode_target(target, data, image_size, where)

    def _transformed(self, decoded: Decoded, sample: int, in_round: int) -> Decoded:
        image, values = decoded.image, decoded.targets or {}
        if self._transform is not None:
            seed = self._transform_seed(sample, in_round)
            image, values = transform_sample(self._transform, image, values, self._targets, seed)
        if self._image_size is not None:
            values = self._fitted(values, (image.shape[0], image.shape[1]), self._image_size)
            image = fit_image(image, self._image_size)
        return Decoded(image, values)

    def _gathered(self, targets: list[dict[str, Any] | None]) -> dict[str, Any] | None:
        return pack_targets(self._targets, [values or {} for values in targets])

    def _fitted(self, values: dict[str, Value], image_size: Size, size: Size) -> dict[str, Value]:
        masks = {name: fit_mask(values[name], size) for name in self._targets.of_kind("mask")}
        boxes = {name: fit_boxes(values[name], image_size, size) for name in self._targets.of_kind("boxes")}
        return values | masks | boxes


def _parameters(transform: SampleTransform, kind: str) -> Any:
    return getattr(getattr(transform, "processors", {}).get(kind), "params", None)


def _label_fields(transform: SampleTransform, kind: str) -> list[str]:
    return list(getattr(_parameters(transform, kind), "label_fields", None) or ())


def _check_masks(masks: dict[str, Any], image_size: Sequence[int]) -> None:
    for name, mask in masks.items():
        if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "iu" or mask.shape != tuple(image_size):
            found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InputError(
                f"sample_transform made {found} of the mask {name!r} and an image of {image_size[0]} x "
                f"{image_size[1]} pixels (H x W): a mask must stay whole numbers (H, W) of the size of its image."
            )
