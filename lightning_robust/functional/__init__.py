"""Pure functions on tensors: where the formula of every method is."""

from lightning_robust.functional.jafr import jacobian_frequency_bias, jacobian_spectrum, spectrum_frequency_bias

__all__ = [
    "jacobian_frequency_bias",
    "jacobian_spectrum",
    "spectrum_frequency_bias",
]
