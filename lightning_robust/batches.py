"""Image and target in a batch of any shape."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_robust.errors import InputError
from lightning_robust.images import Images, ImageSpec

Key: TypeAlias = int | str
Path: TypeAlias = tuple[Key, ...]

IMAGE_NAMES = ("image", "images", "img", "imgs", "x", "input", "inputs", "pixel_values", "jpg", "png")
TARGET_NAMES = ("target", "targets", "label", "labels", "y", "cls", "class")


class BatchAdapter:
    """Finds image and target in a batch of any shape and hands back a new batch of the same type.

    The rule, where the spec names no key: a bare tensor is the image; a mapping, dataclass or namedtuple is searched
    for the names ``IMAGE_NAMES`` and ``TARGET_NAMES`` in that order; a tuple or list holds the image first and the
    target second; a container in the image's place is searched by the same rule. An image is a tensor of shape
    (B, C, H, W), or a list of tensors of shape (C, H, W) (detection).

    Args:
        spec: what the user declared.

    Example:
        >>> adapter = BatchAdapter(ImageSpec())
        >>> batch = {"image": torch.zeros(2, 3, 4, 4), "label": torch.tensor([0, 1])}
        >>> image, target = adapter.read(batch)
        >>> adapter.write(batch, image + 1)["image"].max().item(), batch["image"].max().item()
        (1.0, 0.0)
    """

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec

    def read(self, batch: Any) -> tuple[Images, Any]:
        """Return image and target (None where the batch has none).

        Raises:
            InputError: if no image is found, saying what the batch holds and which argument names it.
        """
        image_path, target_path = self.paths(batch)
        return _get(batch, image_path), None if target_path is None else _get(batch, target_path)

    def write(self, batch: Any, image: Images, target: Any = None) -> Any:
        """Return a new batch of the same type with another image and, unless None, another target."""
        image_path, target_path = self.paths(batch)
        batch = _put(batch, image_path, image)
        return batch if target is None or target_path is None else _put(batch, target_path, target)

    def paths(self, batch: Any) -> tuple[Path, Path | None]:
        """Return the paths of image and target in the batch."""
        image_path, target_path = _as_path(self.spec.image_key), _as_path(self.spec.target_key)
        found_image, found_target = _search(batch)
        image_path = found_image if image_path is None else image_path
        target_path = found_target if target_path is None else target_path
        if image_path is None:
            raise InputError(
                f"No image was found in a batch of {describe(batch)}. Name it, for example "
                'ImageSpec(image_key="image", target_key="label").'
            )
        for name, path in (("image_key", image_path), ("target_key", target_path)):
            if path is not None and not _reaches(batch, path):
                raise InputError(
                    f"{name}={list(path)} leads nowhere in a batch of {describe(batch)}. Correct {name} in ImageSpec."
                )
        return image_path, target_path


def describe(value: Any) -> str:
    """Say what a batch holds, for an error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with " + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of ({', '.join(describe(v) for v in value[:4])})"
    names = _attributes(value)
    if names:
        return f"{type(value).__name__} with " + ", ".join(f"{n}: {describe(getattr(value, n))}" for n in names)
    return type(value).__name__


def is_image(value: Any) -> bool:
    """Whether a value is a batch of images: (B, C, H, W), or a list of (C, H, W)."""
    if isinstance(value, Tensor):
        return value.ndim == 4 and (value.is_floating_point() or value.dtype == torch.uint8)
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(v, Tensor) and v.ndim == 3 and (v.is_floating_point() or v.dtype == torch.uint8) for v in value
        )
    )


def _as_path(key: Any) -> Path | None:
    if key is None:
        return None
    return tuple(key) if isinstance(key, list | tuple) else (key,)


def _attributes(value: Any) -> list[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return list(getattr(value, "_fields", ()))


def _search(batch: Any) -> tuple[Path | None, Path | None]:
    if is_image(batch):
        return (), None
    if isinstance(batch, Mapping):
        entries: dict[Key, Any] = dict(batch)
    elif names := _attributes(batch):
        entries = {name: getattr(batch, name) for name in names}
    elif isinstance(batch, list | tuple):
        return _search_sequence(batch)
    else:
        return None, None
    image = _first(entries, IMAGE_NAMES, containers=True)
    target = next(((name,) for name in TARGET_NAMES if name in entries), None)
    if image is None and isinstance(batch, tuple):
        return _search_sequence(batch)
    return image, target


def _search_sequence(batch: Sequence[Any]) -> tuple[Path | None, Path | None]:
    if not batch:
        return None, None
    target: Path | None = (1,) if len(batch) > 1 else None
    if is_image(batch[0]):
        return (0,), target
    image, inner_target = _search(batch[0])
    if image is None:
        return None, target
    return (0, *image), target if inner_target is None or target is not None else (0, *inner_target)


def _first(entries: Mapping[Key, Any], names: Sequence[str], *, containers: bool) -> Path | None:
    for name in names:
        if name in entries and is_image(entries[name]):
            return (name,)
    if containers:
        for name in names:
            inner = _search(entries[name])[0] if name in entries else None
            if inner is not None:
                return (name, *inner)
    return None


def _item(batch: Any, key: Key) -> Any:
    if isinstance(batch, Mapping) or (isinstance(batch, list | tuple) and isinstance(key, int)):
        return batch[key]  # type: ignore[index]
    return getattr(batch, str(key))


def _get(batch: Any, path: Path) -> Any:
    for key in path:
        batch = _item(batch, key)
    return batch


def _reaches(batch: Any, path: Path) -> bool:
    try:
        _get(batch, path)
    except (LookupError, AttributeError, TypeError):
        return False
    return True


def _put(batch: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    key, inner = path[0], _put(_item(batch, path[0]), path[1:], value)
    if isinstance(batch, Mapping):
        new = copy.copy(batch)
        new[key] = inner  # type: ignore[index]
        return new
    if hasattr(batch, "_replace"):
        return batch._replace(**{key if isinstance(key, str) else batch._fields[key]: inner})
    if isinstance(batch, list | tuple):
        items = [inner if i == key else item for i, item in enumerate(batch)]
        return items if type(batch) is list else type(batch)(items)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{str(key): inner})
    new = copy.copy(batch)
    setattr(new, str(key), inner)
    return new
