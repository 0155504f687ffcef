"""Robustness for PyTorch Lightning: callbacks, layers, attacks and a shard pipeline.

``import lightning_robust`` loads nothing heavy; import what you use from its subpackages.
"""

__version__ = "0.1.0"
