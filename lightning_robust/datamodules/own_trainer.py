"""Tell a Trainer of the other Lightning package that a data module is not of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import pytorch_lightning as pl

from lightning_robust.errors import UnsupportedError


class OwnTrainerDataModule(pl.LightningDataModule):
    """A data module that refuses the Trainer of ``lightning``, whose own checks end in errors that name nothing."""

    @property
    def trainer(self) -> Any:
        """The Trainer that uses this data module, or None."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        if any(kind.__module__.startswith("lightning.pytorch") for kind in type(trainer).__mro__):
            self._refuse()
        self._trainer = trainer
        if trainer is not None:
            self.attached()

    def attached(self) -> None:
        """Called when a Trainer takes the data module, before it looks at which hooks there are."""

    def __iter__(self) -> Iterator[NoReturn]:
        # the Trainer of ``lightning`` takes what it is handed without ``datamodule=`` for a loader
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f"{type(self).__name__} belongs to pytorch_lightning, as does the command line, and works with "
            "pytorch_lightning.Trainer only. Import Trainer and LightningModule from pytorch_lightning, or, with the "
            "Trainer of lightning, feed it ShardLoaders (lightning_robust.datamodules.ShardLoader). The callbacks work "
            "with both."
        )
