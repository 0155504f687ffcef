"""Callbacks that make a LightningModule more robust without editing it."""

from lightning_robust.callbacks.adversarial import AdversarialTraining
from lightning_robust.callbacks.augmentation import BatchAugmentation
from lightning_robust.callbacks.jafr import JacobianFrequencyRegularization
from lightning_robust.callbacks.overfitting_guard import OverfittingGuard
from lightning_robust.callbacks.pooling import FrequencyPooling
from lightning_robust.callbacks.purification import InputPurification
from lightning_robust.callbacks.sharpening import PreemptiveSharpening

__all__ = [
    "AdversarialTraining",
    "BatchAugmentation",
    "FrequencyPooling",
    "InputPurification",
    "JacobianFrequencyRegularization",
    "OverfittingGuard",
    "PreemptiveSharpening",
]
