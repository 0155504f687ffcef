"""Defenses that know nothing: what a purifier has to beat at the same distortion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from lightning_robust import seeds as streams
from lightning_robust.defenses._planes import check_range, mean
from lightning_robust.defenses.contract import Defense
from lightning_robust.errors import InputError


class Identity(Defense):
    """Leave the image as it is: its row has to equal that of no defense."""

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Return the image."""
        del seeds
        return image


class _MatchedControl(Defense):
    """A change whose strength is set, image by image, so that its root mean square is a wanted one."""

    def __init__(self, rmse: float | Defense) -> None:
        super().__init__()
        if not isinstance(rmse, Defense):
            check_range("rmse", rmse, 0, 1)
        self.rmse = rmse

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return "" if isinstance(self.rmse, Defense) else f"rmse={self.rmse:g}"

    def _wanted(self, image: Tensor, seeds: Tensor) -> Tensor:
        if not isinstance(self.rmse, Defense):
            return image.new_full((len(image), 1, 1, 1), self.rmse)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.rmse.is_differentiable):
            purified = self.rmse(image, seeds=seeds)
        if purified.shape != image.shape:
            raise InputError(
                f"{type(self.rmse).__name__} takes images of {tuple(image.shape[2:])} to {tuple(purified.shape[2:])}: "
                "a control can match only a defense that keeps the size. Give the RMSE as a number."
            )
        return _rmse(purified - image)


class MatchedNoise(_MatchedControl):
    """Add white Gaussian noise of the same root mean square as another defense's change (ours).

    The strength is found by bisection, so that the match holds after clipping to [0, 1].

    Args:
        rmse: root mean square of the change in [0, 1] units, or the defense whose change to each image sets it.

    Raises:
        InputError: if the number is out of range, or, in the call, the other defense changes the size.
    """

    is_random = True

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Draw the noise and scale it."""
        noise = streams.normal(seeds, tuple(image.shape[1:]), "control").to(image)

        def apply(strength: Tensor) -> Tensor:
            return (image + strength * noise).clamp(0, 1)

        # at the upper end nearly every value is black or white
        return apply(_match(apply, image, self._wanted(image, seeds), high=100.0, halvings=36))


class MatchedBlur(_MatchedControl):
    """Blur with a Gaussian of the same root mean square change as another defense's (ours).

    The standard deviation is found by bisection, up to ``max_sigma``: an image that no blur changes so much is blurred
    by that.

    Args:
        rmse: root mean square of the change in [0, 1] units, or the defense whose change to each image sets it.
        max_sigma: largest standard deviation in pixels; the window is cut at three times it.

    Raises:
        InputError: if a number is out of range, or, in the call, the other defense changes the size.
    """

    def __init__(self, rmse: float | Defense, *, max_sigma: float = 8.0) -> None:
        super().__init__(rmse)
        check_range("max_sigma", max_sigma, 0.1)
        self.max_sigma = max_sigma

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether the defense that it matches is."""
        return isinstance(self.rmse, Defense) and self.rmse.is_random

    def purify(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Find each image's standard deviation and blur."""
        window = 2 * int(3 * self.max_sigma + 0.5) + 1

        def apply(strength: Tensor) -> Tensor:
            # below a tenth of a pixel a Gaussian is the identity in float32
            sigma = strength.clamp_min(0.05).view(-1, 1).expand(-1, 2)
            return gaussian_blur2d(image, window, sigma, border_type="replicate")

        return apply(_match(apply, image, self._wanted(image, seeds), high=self.max_sigma, halvings=26))


def _match(apply: Callable[[Tensor], Tensor], image: Tensor, wanted: Tensor, *, high: float, halvings: int) -> Tensor:
    """Bisect the strength of each image in [0, high] for a change of the wanted RMSE; with its implicit derivative."""
    with torch.no_grad():
        low_end, high_end = torch.zeros_like(wanted), torch.full_like(wanted, high)
        for _ in range(halvings):
            middle = (low_end + high_end) / 2
            enough = _rmse(apply(middle) - image) >= wanted
            low_end, high_end = torch.where(enough, low_end, middle), torch.where(enough, middle, high_end)
    if not (torch.is_grad_enabled() and image.requires_grad):
        return high_end
    leaf = high_end.clone().requires_grad_()
    (slope,) = torch.autograd.grad(_rmse(apply(leaf) - image.detach()).sum(), leaf)
    error = _rmse(apply(high_end) - image) - wanted
    # where the change no longer grows with the strength, the strength does not depend on the image
    return high_end - (error - error.detach()) / torch.where(slope > 1e-6, slope, torch.inf)


def _rmse(change: Tensor) -> Tensor:
    # the floor keeps the derivative finite where nothing changes
    return mean(change.square(), (1, 2, 3)).add(1e-24).sqrt()
