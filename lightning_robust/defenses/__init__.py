"""Input transformations that stand before an unchanged net at inference; one contract, one file each."""

from lightning_robust.defenses.contract import Defense, Sequence

__all__ = ["Defense", "Sequence"]
