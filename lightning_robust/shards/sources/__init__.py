"""Where samples to pack come from: each source is a sequence of :class:`Sample` that knows its targets and classes."""

from lightning_robust.shards.sources.arrays import ArraySamples
from lightning_robust.shards.sources.base import SampleSource
from lightning_robust.shards.sources.checked import CheckedSamples
from lightning_robust.shards.sources.cifar import cifar_binary
from lightning_robust.shards.sources.csvlist import csv_list
from lightning_robust.shards.sources.files import FileSamples, image_folder
from lightning_robust.shards.sources.jsonllist import jsonl_list
from lightning_robust.shards.sources.parquetlist import parquet_list
from lightning_robust.shards.sources.svhn import svhn_mat
from lightning_robust.shards.sources.tinyimagenet import tiny_image_net

__all__ = [
    "ArraySamples",
    "CheckedSamples",
    "FileSamples",
    "SampleSource",
    "cifar_binary",
    "csv_list",
    "image_folder",
    "jsonl_list",
    "parquet_list",
    "svhn_mat",
    "tiny_image_net",
]
