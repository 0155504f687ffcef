"""The targets of single samples: decoded from members, and gathered to batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_robust.datamodules.geometry import Boxes, Mask, Size, clip_boxes
from lightning_robust.datamodules.targets import Kind, Target, Targets
from lightning_robust.errors import ShardError
from lightning_robust.shards.annotations import decode_mask, parse_class, parse_json

Value: TypeAlias = Any


def decode_target(target: Target, data: bytes, image_size: Size, where: str) -> Value:
    """Decode a target of one sample.

    Args:
        target: which one.
        data: bytes of its member.
        image_size: height and width of the image as it was decoded.
        where: names the member in an error.

    Returns:
        For a mask, its numbers (H, W); for boxes, :class:`Boxes`; for multilabel, float32 (classes,), 1 for the classes
        that are present; for JSON, the value; for a class number, this.

    Raises:
        ShardError: it cannot be decoded, is not of the shape that it must be, or holds a class that is not one.
    """
    return _DECODERS[target.kind](target, data, image_size, where)


def pack_targets(targets: Targets, samples: list[dict[str, Value]]) -> dict[str, Any]:
    """Gather the targets of a batch, to be sent to another process in few pieces."""
    return {target.name: _pack(target, [values[target.name] for values in samples]) for target in targets.read}


def unpack_targets(targets: Targets, packed: dict[str, Any] | None, class_numbers: Tensor | None) -> Any:
    """Make of gathered targets what a batch holds.

    Args:
        targets: which they are.
        packed: those that were read from members, by :func:`pack_targets`.
        class_numbers: of the samples, as the index has them.

    Returns:
        One value, or a dict of several by name. A value is, for masks, int64 (B, H, W); for boxes, a list of dicts with
        ``boxes``, float32 (N, 4), and ``labels``, int64 (N,); for multilabel, float32 (B, classes); for JSON, a list of
        values; for the class number, int64 (B,).
    """
    packed = packed or {}
    return targets.unnamed(
        {
            target.name: _unpack(target, packed[target.name]) if target.name in packed else class_numbers
            for target in targets.all
        }
    )


def _pack(target: Target, values: list[Value]) -> Any:
    """One target of a batch.

    Boxes go by value: a tensor in shared memory takes a file descriptor, and a batch of boxes would take hundreds.
    """
    if target.kind == "mask":
        masks = np.stack(values)
        return torch.from_numpy(masks if masks.dtype == np.uint8 else masks.astype(np.int32))
    if target.kind == "multilabel":
        return torch.from_numpy(np.stack(values))
    if target.kind == "class":
        return torch.tensor(values, dtype=torch.int64)
    if target.kind == "boxes":
        counts = [len(found.labels) for found in values]
        return np.concatenate([found.boxes for found in values]), np.concatenate([f.labels for f in values]), counts
    return values


def _unpack(target: Target, packed: Any) -> Any:
    if target.kind == "mask":
        masks: Tensor = packed
        return masks.long()
    if target.kind == "boxes":
        boxes, labels, counts = packed
        cuts = np.cumsum(counts)[:-1]
        # copies, so that one that is kept does not keep the whole batch
        return [
            {"boxes": torch.tensor(part), "labels": torch.tensor(numbers)}
            for part, numbers in zip(np.split(boxes, cuts), np.split(labels, cuts), strict=True)
        ]
    return packed


def _mask(target: Target, data: bytes, image_size: Size, where: str) -> Mask:
    mask = decode_mask(data, where=where)
    if mask.shape != image_size:
        raise ShardError(
            f"{where} has {mask.shape[0]} x {mask.shape[1]} pixels (H x W) and its image {image_size[0]} x "
            f"{image_size[1]}: a mask must have the size of its image."
        )
    if target.classes is not None:
        wrong = mask >= target.classes
        if target.ignore is not None:
            wrong &= mask != target.ignore
        if wrong.any():
            besides = "" if target.ignore is None else f" and {target.ignore}"
            raise ShardError(
                f"{where} holds the class {mask[wrong][0]}; expected 0 to {target.classes - 1}{besides}. Correct "
                f"classes={target.classes} of the target {target.name!r}, or the mask (ignore=255 allows a number "
                "that is no class)."
            )
    return mask


def _boxes(target: Target, data: bytes, image_size: Size, where: str) -> Boxes:
    value = parse_json(data, where=where)
    if not isinstance(value, dict) or not {"boxes", "labels"} <= value.keys():
        raise ShardError(f'{where} is not an object with "boxes" and "labels".')
    boxes, labels = _corners(value["boxes"]), _integers(value["labels"])
    if boxes is None:
        raise ShardError(f'"boxes" of {where} is not a list of boxes [x0, y0, x1, y1].')
    if labels is None or len(labels) != len(boxes):
        raise ShardError(f'"labels" of {where} is not a list of {len(boxes)} class numbers, one for each box.')
    _check_classes(labels, target, where)
    with np.errstate(over="ignore"):
        found = Boxes(boxes.astype(np.float32), labels)
    height, width = image_size
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    inside = (low < np.array([width, height])) & (high > 0)
    wrong = ~((low < high) & inside & np.isfinite(low) & np.isfinite(high)).all(1)
    if wrong.any():
        raise ShardError(
            f"{where} holds the box {boxes[wrong][0].tolist()}; expected x0 < x1 and y0 < y1 in pixels, and a part of "
            f"it within its image of {height} x {width} pixels (H x W)."
        )
    return clip_boxes(found, image_size)


def _multilabel(target: Target, data: bytes, image_size: Size, where: str) -> npt.NDArray[np.float32]:
    value = parse_json(data, where=where)
    numbers = _integers(value)
    if numbers is None:
        raise ShardError(f"{where} is not a list of class numbers.")
    _check_classes(numbers, target, where)
    present = np.zeros(target.classes or 0, np.float32)
    present[numbers] = 1
    return present


def _json(target: Target, data: bytes, image_size: Size, where: str) -> Any:
    return parse_json(data, where=where)


def _class_number(target: Target, data: bytes, image_size: Size, where: str) -> int:
    return parse_class(data, where=where)


def _corners(value: Any) -> npt.NDArray[np.float64] | None:
    """Boxes (N, 4) that JSON lists, or None if it lists something else."""
    # types first: numpy makes of mixed lists what it likes, of any size
    if not isinstance(value, list) or not all(isinstance(box, list) and len(box) == 4 for box in value):
        return None
    if any(type(number) not in (int, float) for box in value for number in box):
        return None
    try:
        return np.array(value, np.float64).reshape(-1, 4)
    except OverflowError:
        return None


def _integers(value: Any) -> npt.NDArray[np.int64] | None:
    """Whole numbers that JSON lists, or None if it lists something else."""
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        return None
    try:
        return np.array(value, np.int64)
    except OverflowError:
        return None


def _check_classes(numbers: npt.NDArray[np.int64], target: Target, where: str) -> None:
    wrong = numbers < 0 if target.classes is None else (numbers < 0) | (numbers >= target.classes)
    if wrong.any():
        allowed = "0 or more" if target.classes is None else f"0 to {target.classes - 1}"
        raise ShardError(
            f"{where} holds the class {numbers[wrong][0]}; expected {allowed}. Correct it, or the classes of the "
            f"target {target.name!r}."
        )


_DECODERS: dict[Kind, Callable[[Target, bytes, Size, str], Value]] = {
    "mask": _mask,
    "boxes": _boxes,
    "multilabel": _multilabel,
    "json": _json,
    "class": _class_number,
}
