"""Patches of clean images, from which quilting sews."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.defenses._planes import check_whole
from lightning_robust.errors import InputError


@dataclasses.dataclass(frozen=True)
class PatchBank:
    """Square patches cut from training images.

    Build it from the training split only: patches of the test images would hand the attacked image back. Guo et al. and
    their attackers use a million patches of 5 x 5 pixels, 50 from each of 20,000 images.

    Args:
        patches: uint8, shape (N, C, P, P).

    Raises:
        InputError: if they are not of that type and shape.
    """

    patches: Tensor

    def __post_init__(self) -> None:
        patches = self.patches
        square = patches.ndim == 4 and patches.shape[2] == patches.shape[3] >= 3
        if patches.dtype != torch.uint8 or not square or len(patches) == 0:
            raise InputError(
                f"The patches are a {patches.dtype} tensor of shape {tuple(patches.shape)}: give uint8 of shape "
                "(N, C, P, P) with P of at least 3, or build the bank with PatchBank.from_images."
            )

    @classmethod
    def from_images(cls, images: Iterable[Tensor], *, patch: int = 5, per_image: int = 50, seed: int = 0) -> PatchBank:
        """Cut patches at random places of every image.

        Args:
            images: single images (C, H, W) or batches (B, C, H, W), uint8 or in [0, 1]; of any sizes, for example
                ``(image for image, target in datamodule.train_dataloader())``. Read once.
            patch: width of the patches in pixels, at least 3.
            per_image: patches from each image.
            seed: of the places; they depend on it and on an image's position alone.

        Raises:
            InputError: if there is no image, one is smaller than a patch, or they differ in channels or leave [0, 1].
        """
        check_whole("patch", patch, 3)
        check_whole("per_image", per_image, 1)
        cuts = []
        for position, image in enumerate(_one_by_one(images)):
            height, width = image.shape[1:]
            if min(height, width) < patch:
                raise InputError(
                    f"Image {position} is {height} x {width}: give images of at least {patch} x {patch}, or a smaller "
                    "patch."
                )
            own = streams.derive(torch.tensor([seed]), "patch bank", position)
            rows = streams.integers(own, (per_image,), height - patch + 1, "rows")[0]
            columns = streams.integers(own, (per_image,), width - patch + 1, "columns")[0]
            cuts.append(image.unfold(1, patch, 1).unfold(2, patch, 1)[:, rows, columns].transpose(0, 1))
        channels = {cut.shape[1] for cut in cuts}
        if len(channels) != 1:
            seen = f"images of {sorted(channels)} channels" if channels else "no image"
            raise InputError(f"PatchBank.from_images was given {seen}: give images of one number of channels.")
        return cls(torch.cat(cuts))

    def save(self, path: str | Path) -> None:
        """Write the patches as a compressed .npz file."""
        with Path(path).open("wb") as file:
            np.savez_compressed(file, patches=self.patches.cpu().numpy())

    @classmethod
    def load(cls, path: str | Path) -> PatchBank:
        """Read what :meth:`save` wrote; no code in the file is run.

        Raises:
            InputError: if the file is missing or holds no patches.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                patches = torch.from_numpy(file["patches"])
        except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise InputError(
                f"{str(path)!r} holds no patch bank ({error}): write one with PatchBank.from_images(...).save(path)."
            ) from error
        return cls(patches)


def _one_by_one(images: Iterable[Tensor]) -> Iterator[Tensor]:
    for given in images:
        if not isinstance(given, Tensor) or given.ndim not in (3, 4):
            seen = f"{given.dtype}, {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"An image of the patch bank is {seen}: give tensors (C, H, W) or (B, C, H, W).")
        batch = given[None] if given.ndim == 3 else given
        if batch.dtype != torch.uint8:
            low, high = (value.item() for value in batch.aminmax())
            if not (batch.is_floating_point() and low >= 0 and high <= 1):
                raise InputError(
                    f"An image of the patch bank is {batch.dtype} in [{low:.3g}, {high:.3g}]: give uint8, or floats in "
                    "[0, 1] before normalization."
                )
            batch = (batch * 255).round().to(torch.uint8)
        yield from batch.cpu()
