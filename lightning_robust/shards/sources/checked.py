"""A source whose images are decoded as they are packed."""

from __future__ import annotations

from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards.decode import decode_image
from lightning_robust.shards.sources.base import SampleSource
from lightning_robust.shards.writing import Sample


class CheckedSamples(SampleSource):
    """The samples of another source, each decoded when it is asked for, as it will be in training.

    Args:
        source: what is checked.

    Raises:
        InputError: when a sample is asked for whose image is damaged or cut, with the name of its file.
    """

    def __init__(self, source: SampleSource) -> None:
        super().__init__(source.targets, source.classes)
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def describe(self, position: int) -> str:
        """Name a sample as its source does."""
        return self._source.describe(position)

    def make(self, position: int) -> Sample:
        """Make the sample at a position, and decode its image."""
        sample = self._source[position]
        if isinstance(sample.image, bytes):
            try:
                decode_image(sample.image, where=self.describe(position), remedy="Mend it or take it away.")
            except ShardError as error:
                raise InputError(str(error)) from None
        return sample
