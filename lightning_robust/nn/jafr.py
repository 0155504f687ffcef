"""The JaFR penalty as a module with its settings."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_robust.functional.jafr import (
    BiasReduction,
    BiasVariant,
    Direction,
    check_bias_options,
    jacobian_frequency_bias,
    spectrum_frequency_bias,
)


class JaFRLoss(nn.Module):
    """Penalty ``-weight * bias`` that, added to the loss, moves the Jacobian's energy to one end of the spectrum.

    The bias is that of :func:`lightning_robust.functional.jacobian_frequency_bias`. The defaults are those of the
    released scripts of JaFR (IJCAI 2022), which use a weight of 0.001 (0.002 for FGSM training on CIFAR-100).

    Args:
        weight: strength lambda. A negative weight penalizes what a positive one rewards, which is not the same as the
            other ``direction``.
        variant: ``released``, or our own ``ratio``.
        reduction: ``sum``, ``sumlog`` or ``product``; other reductions than ``sum`` need another weight.
        max_power: exponent at zero frequency.
        temperature: positive divisor inside the logarithm; it shifts the value and leaves gradients alone.
        ignore_first_basis: take the zero frequency out, in the way of the variant.
        direction: ``low`` or ``high``.

    Raises:
        InputError: if an option is unknown.
    """

    def __init__(
        self,
        weight: float = 0.001,
        *,
        variant: BiasVariant = "released",
        reduction: BiasReduction = "sum",
        max_power: float = 1.0,
        temperature: float = 1.0,
        ignore_first_basis: bool = False,
        direction: Direction = "low",
    ) -> None:
        super().__init__()
        check_bias_options(variant, reduction, max_power, temperature, direction)
        self.weight = weight
        self.variant: BiasVariant = variant
        self.reduction: BiasReduction = reduction
        self.max_power = max_power
        self.temperature = temperature
        self.ignore_first_basis = ignore_first_basis
        self.direction: Direction = direction

    def forward(self, gradient: Tensor) -> Tensor:
        """Return the penalty of an input gradient of shape (B, C, H, W), taken with ``create_graph=True``."""
        return -self.weight * jacobian_frequency_bias(
            gradient,
            variant=self.variant,
            reduction=self.reduction,
            max_power=self.max_power,
            temperature=self.temperature,
            ignore_first_basis=self.ignore_first_basis,
            direction=self.direction,
        )

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        """Return the penalty of a spectrum, for example one that was averaged over processes."""
        return -self.weight * spectrum_frequency_bias(
            spectrum,
            variant=self.variant,
            reduction=self.reduction,
            max_power=self.max_power,
            temperature=self.temperature,
            ignore_first_basis=self.ignore_first_basis,
            direction=self.direction,
        )

    def extra_repr(self) -> str:
        """Show the settings that matter in a printed model."""
        return (
            f"weight={self.weight}, variant={self.variant!r}, reduction={self.reduction!r}, "
            f"max_power={self.max_power}, direction={self.direction!r}"
        )
