"""Layers over the functions, and what is done to a model: surgery, restoring."""

from lightning_robust.nn.jafr import JaFRLoss

__all__ = [
    "JaFRLoss",
]
