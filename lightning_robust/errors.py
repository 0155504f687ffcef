"""Errors and warnings of the package: a sentence that names the thing, what was found, and the remedy."""

from __future__ import annotations


class RobustError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(RobustError, ValueError):
    """An argument, a batch or an image is not what the function needs."""


class UnsupportedError(RobustError, RuntimeError):
    """A combination of Trainer, model and method that cannot work."""


class ShardError(RobustError, OSError):
    """A shard or its index is missing, damaged, or holds something it must not."""


class RobustWarning(UserWarning):
    """Base of the warnings of this package."""


class NoEffectWarning(RobustWarning):
    """A method was asked for and found nothing to act on."""
