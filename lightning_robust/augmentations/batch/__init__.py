"""Kornia augmentations: whole batches, on the device."""
