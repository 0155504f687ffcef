"""Attacks: one function each, one contract for all."""

from lightning_robust.attacks.bpda import bpda
from lightning_robust.attacks.budget import NormalizedL2, normalized_l2, scale_to_budget
from lightning_robust.attacks.carlini_wagner import carlini_wagner
from lightning_robust.attacks.contract import frozen_model
from lightning_robust.attacks.deepfool import deepfool
from lightning_robust.attacks.eot import eot
from lightning_robust.attacks.fgsm import fgsm
from lightning_robust.attacks.igsm import igsm
from lightning_robust.attacks.jsma import jsma
from lightning_robust.attacks.lbfgs import lbfgs
from lightning_robust.attacks.losses import cross_entropy, margin
from lightning_robust.attacks.pgd import pgd
from lightning_robust.attacks.record import AttackRecord

__all__ = [
    "AttackRecord",
    "NormalizedL2",
    "bpda",
    "carlini_wagner",
    "cross_entropy",
    "deepfool",
    "eot",
    "fgsm",
    "frozen_model",
    "igsm",
    "jsma",
    "lbfgs",
    "margin",
    "normalized_l2",
    "pgd",
    "scale_to_budget",
]
