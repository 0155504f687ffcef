"""ImageClassifier, a plain LightningModule, and the small reference nets."""

from lightning_robust.models.classifier import ImageClassifier
from lightning_robust.models.preact_resnet import PreActResNet18, preact_resnet18
from lightning_robust.models.resnet import CifarResNet, resnet20, resnet56
from lightning_robust.models.small_cnn import SmallCNN

__all__ = [
    "CifarResNet",
    "ImageClassifier",
    "PreActResNet18",
    "SmallCNN",
    "preact_resnet18",
    "resnet20",
    "resnet56",
]
