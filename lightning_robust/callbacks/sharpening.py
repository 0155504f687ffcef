"""Publish sharpened images in the steps of a module."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.callback import StepCallback
from lightning_robust.callbacks.contribution import Step
from lightning_robust.callbacks.pictures import log_picture, side_by_side
from lightning_robust.errors import InputError
from lightning_robust.functional import alpha_for_psnr, laplacian_sharpen, texture_intensity
from lightning_robust.images import ImageSpec


class PreemptiveSharpening(StepCallback):
    """Sharpen every image before the step sees it, as its owner would before publishing it.

    The method (arXiv 2603.25244) changes published inputs and leaves training alone, so it acts in evaluation. Adding
    ``"train"`` to ``stages`` is our ablation, not the paper's.

    Logs the strength, the PSNR of the published images and their texture intensity, as means over all images of an
    evaluation, and in training over those of one batch in ``log_every_n_steps``.

    Args:
        alpha: strength of the Laplacian.
        stages: where it acts.
        neighbors: 4 or 8.
        normalize: divide the Laplacian by ``neighbors``.
        levels: 256 rounds to 8 bits as a published image is; None leaves it continuous.
        psnr: in dB; picks alpha per image so that the published image has this distortion, instead of ``alpha``.
        spec: how batches look, if no other callback says so.

    Raises:
        InputError: for a negative strength or another nonsense.

    Example:
        >>> PreemptiveSharpening(0.15).stages
        ('validate', 'test', 'predict')
    """

    transforms = True

    def __init__(
        self,
        alpha: float = 0.15,
        *,
        stages: Collection[str] = ("validate", "test", "predict"),
        neighbors: Literal[4, 8] = 4,
        normalize: bool = False,
        levels: int | None = 256,
        psnr: float | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        super().__init__(stages=stages, spec=spec)
        if not 0 <= alpha < math.inf or neighbors not in (4, 8) or (psnr is not None and not psnr > 0):
            raise InputError(
                f"alpha={alpha}, neighbors={neighbors}, psnr={psnr}: give a strength of at least 0, 4 or 8 neighbors, "
                "and a positive PSNR in dB or None."
            )
        self.alpha, self.neighbors, self.normalize = alpha, neighbors, normalize
        self.levels, self.psnr = levels, psnr

    def settings(self) -> dict[str, Any]:
        """Return the arguments as plain data."""
        return super().settings() | {
            "alpha": self.alpha,
            "neighbors": self.neighbors,
            "normalize": self.normalize,
            "levels": self.levels,
            "psnr": self.psnr,
        }

    def transform(self, step: Step) -> None:
        """Publish the batch."""
        before = step.image
        if isinstance(before, Tensor):
            alpha = self._strength(before)
            step.image = self._publish(before, alpha)
            self._report(step, before, step.image, alpha)
        else:
            step.image = [self._publish(one[None], self._strength(one[None]))[0] for one in before]

    def _strength(self, image: Tensor) -> float | Tensor:
        return self.alpha if self.psnr is None else alpha_for_psnr(image, self.psnr, **self._operator())

    def _publish(self, image: Tensor, alpha: float | Tensor) -> Tensor:
        return laplacian_sharpen(image, alpha, **self._operator())

    def _operator(self) -> dict[str, Any]:
        return {"neighbors": self.neighbors, "normalize": self.normalize, "levels": self.levels}

    def _report(self, step: Step, before: Tensor, after: Tensor, alpha: float | Tensor) -> None:
        trainer: pl.Trainer = step.module.trainer
        if _is_logged(trainer, step.stage):
            unit = 255.0 if before.dtype == torch.uint8 else 1.0
            error = ((after.float() - before.float()) / unit).square().flatten(1).mean(1).clamp_min(1e-10)
            values = {
                "alpha": torch.as_tensor(alpha, dtype=torch.float32).mean(),
                "psnr": (-10 * error.log10()).mean(),
                "texture": texture_intensity(after).float().mean(),
            }
            step.module.log_dict(
                {f"sharpening/{name}/{step.stage}": value.to(step.device) for name, value in values.items()},
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                batch_size=len(after),
            )
        if self.first_of_epoch(trainer, step.stage):
            scale = 255.0 if after.dtype == torch.uint8 else 1.0
            log_picture(trainer, f"sharpening/{step.stage}", side_by_side(before[0] / scale, after[0] / scale))


def _is_logged(trainer: pl.Trainer, stage: str) -> bool:
    """Whether this batch counts in the logged values: in training one in ``log_every_n_steps``, in evaluation all."""
    if stage != "train":
        return stage != "predict"  # where Lightning takes no values
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the Trainer's logger connector
    return int(trainer.fit_loop.batch_idx) % max(every, 1) == 0
