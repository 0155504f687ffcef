"""Pictures for the Trainer's logger; one that takes none gets them as PNG in its folder. No logger, no pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pytorch_lightning as pl


def takes_pictures(trainer: pl.Trainer) -> bool:
    """Whether a run shows pictures at all; the same on every process."""
    return bool(trainer.loggers) and not getattr(trainer, "fast_dev_run", False)


def log_picture(trainer: pl.Trainer, name: str, image: Tensor) -> None:
    """Show one image on rank 0, by the first way the logger offers.

    Args:
        trainer: its loggers are asked for ``experiment.add_image`` (TensorBoard) and ``log_image`` (W&B and others).
        name: such as ``"sharpening/validate"``.
        image: (C, H, W) with 1 or 3 channels, in [0, 1].
    """
    if not trainer.is_global_zero or not takes_pictures(trainer):
        return
    picture = (image.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    if picture.shape[0] == 1:
        picture = picture.expand(3, -1, -1)
    shown = False
    for logger in trainer.loggers:
        experiment = getattr(logger, "experiment", None)
        if experiment is not None and hasattr(experiment, "add_image"):
            experiment.add_image(name, picture, trainer.global_step)
            shown = True
        elif hasattr(logger, "log_image"):
            logger.log_image(name, [picture.permute(1, 2, 0).numpy()], step=trainer.global_step)
            shown = True
    if not shown:
        _write(_folder(trainer), f"{name}-{trainer.global_step}.png", picture)


def side_by_side(*images: Tensor) -> Tensor:
    """Put (C, H, W) images of one size beside each other, two pixels apart."""
    gap = images[0].new_ones(images[0].shape[0], images[0].shape[1], 2)
    parts: list[Tensor] = []
    for image in images:
        parts += [image, gap]
    return torch.cat(parts[:-1], dim=-1)


def heat_rows(image: Tensor, *maps: Tensor) -> Tensor:
    """Put every image in a row, with each map laid over it beside it.

    Args:
        image: (B, C, H, W) with 1 or 3 channels, in [0, 1].
        maps: each (B, H, W) in [0, 1].

    Returns:
        One picture, (3, B * (H + 2) - 2, ...).
    """
    rows = [
        side_by_side(one.expand(3, -1, -1), *(heat_over(one, heat) for heat in heats))
        for one, *heats in zip(image, *maps, strict=True)
    ]
    return side_by_side(*(row.mT for row in rows)).mT


def heat_over(image: Tensor, heat: Tensor) -> Tensor:
    """Lay a map in false colors, blue to red, over an image.

    Args:
        image: (C, H, W) with 1 or 3 channels, in [0, 1].
        heat: (H, W) in [0, 1].

    Returns:
        (3, H, W) in [0, 1].
    """
    import cv2

    levels = (heat.detach().float() * 255).round().to("cpu", torch.uint8).numpy()
    colors = torch.from_numpy(cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB))
    return (image + colors.permute(2, 0, 1).to(image) / 255) / 2


def _folder(trainer: pl.Trainer) -> Path:
    """The run's folder, asked of the logger: ``trainer.log_dir`` waits for all processes, and only rank 0 is here."""
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder:
            return Path(folder)
    return Path(trainer.default_root_dir)


def _write(folder: Path, name: str, picture: Tensor) -> None:
    import cv2

    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(picture.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2BGR))
