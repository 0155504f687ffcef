"""What files say of an image beside it: read when its sample is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.annotations import decode_mask
from lightning_robust.shards.imagesize import image_size

# the further members of the sample at a position, given its encoded image
Members = Callable[[int, bytes], Mapping[str, Any]]


def read_member(file: Path, extension: str, image: bytes, where: str) -> bytes:
    """Read the file of a further member; it is packed as it is.

    Args:
        file: what is read.
        extension: of the member; for one that ends in ``png``, the file must be a mask.
        image: the encoded image that it stands beside.
        where: names it in an error.

    Raises:
        InputError: the file cannot be read, or is to be a mask and is no PNG of one channel and of the size of the
            image.
    """
    try:
        data = file.read_bytes()
        if extension.rpartition(".")[2] == "png":
            mask = decode_mask(data, where=where, remedy="Replace the file.")
            _check_size(mask.shape, image, where)
    except ShardError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}.") from error
    return data


def _check_size(found: tuple[int, ...], image: bytes, where: str) -> None:
    try:
        expected = image_size(image)
    except ValueError:
        return  # the writer says so, whether or not anything stands beside it
    if found != expected:
        raise InputError(
            f"{where} has {found[1]} x {found[0]} pixels and its image {expected[1]} x {expected[0]}; expected a mask "
            "of the size of its image."
        )


class FolderMasks:
    """Masks in a folder of their own: each at the path that its image has in its folder, as ``.png``.

    Args:
        masks: the folder.
        home: the folder of the images.
        images: files below it.
    """

    extension = "seg.png"

    def __init__(self, masks: Path, home: Path, images: Sequence[Path]) -> None:
        self._masks, self._home, self._images = masks, home, images

    def check(self) -> None:
        """Check that every image has a mask.

        Raises:
            InputError: the folder or a mask is missing.
        """
        if not self._masks.is_dir():
            raise InputError(f"{str(self._masks)!r} is not a folder. Give the folder of the masks.")
        missing = [image for image in self._images if not self._mask(image).is_file()]
        if missing:
            raise InputError(
                f"The image {str(missing[0])!r} has no mask: {str(self._mask(missing[0]))!r} is missing "
                f"({len(missing)} of {len(self._images)} masks are)."
            )

    def __call__(self, position: int, image: bytes) -> dict[str, bytes]:
        """Read the mask of the image at a position."""
        file = self._mask(self._images[position])
        return {self.extension: read_member(file, self.extension, image, f"The mask {str(file)!r}")}

    def _mask(self, image: Path) -> Path:
        return self._masks / image.relative_to(self._home).with_suffix(".png")
