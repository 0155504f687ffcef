"""WebDataset shards: pack, index, check and read. Knows tar and image files, nothing of models.

Names are loaded on first use, so that the command line can show its help without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_robust.shards.decode import decode_image
    from lightning_robust.shards.index import ShardIndex
    from lightning_robust.shards.merge import merge_shards
    from lightning_robust.shards.opening import open_index
    from lightning_robust.shards.packing import pack
    from lightning_robust.shards.reader import SampleReader
    from lightning_robust.shards.remote import FetchError, RemoteOptions
    from lightning_robust.shards.robustify_options import Sharpening
    from lightning_robust.shards.robustify_set import finish_robustify, robustify
    from lightning_robust.shards.split import split_shards
    from lightning_robust.shards.verify import Duplicate, VerifyReport, verify_shards
    from lightning_robust.shards.verify_records import Fault
    from lightning_robust.shards.writing import Sample

__all__ = [
    "Duplicate",
    "Fault",
    "FetchError",
    "RemoteOptions",
    "Sample",
    "SampleReader",
    "ShardIndex",
    "Sharpening",
    "VerifyReport",
    "decode_image",
    "finish_robustify",
    "merge_shards",
    "open_index",
    "pack",
    "robustify",
    "split_shards",
    "verify_shards",
]

_HOMES = {
    "Duplicate": "verify",
    "Fault": "verify_records",
    "FetchError": "remote",
    "RemoteOptions": "remote",
    "Sample": "writing",
    "SampleReader": "reader",
    "ShardIndex": "index",
    "Sharpening": "robustify_options",
    "VerifyReport": "verify",
    "decode_image": "decode",
    "finish_robustify": "robustify_set",
    "merge_shards": "merge",
    "open_index": "opening",
    "pack": "packing",
    "robustify": "robustify_set",
    "split_shards": "split",
    "verify_shards": "verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
