"""Attacks: one function each, one contract for all."""

from lightning_robust.attacks.contract import frozen_model
from lightning_robust.attacks.fgsm import fgsm
from lightning_robust.attacks.losses import cross_entropy, margin
from lightning_robust.attacks.pgd import pgd
from lightning_robust.attacks.record import AttackRecord

__all__ = [
    "AttackRecord",
    "cross_entropy",
    "fgsm",
    "frozen_model",
    "margin",
    "pgd",
]
