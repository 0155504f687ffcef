"""Where samples to pack come from: each source is a sequence of :class:`Sample` that knows its targets and classes."""

from lightning_robust.shards.sources.arrays import ArraySamples
from lightning_robust.shards.sources.base import SampleSource
from lightning_robust.shards.sources.cifar import cifar_binary
from lightning_robust.shards.sources.csvlist import csv_list
from lightning_robust.shards.sources.files import FileSamples, image_folder

__all__ = ["ArraySamples", "FileSamples", "SampleSource", "cifar_binary", "csv_list", "image_folder"]
