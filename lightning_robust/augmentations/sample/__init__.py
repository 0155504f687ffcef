"""Albumentations transforms: single images, in the workers."""
