"""One run per callback of the registry, on one process or on a pair; writes the final weights and what was logged.

Started by test_callbacks_ddp.py, alone or under torchrun: ``python ddp_job.py OUT``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from support.modules import CASES, UserModule, loader, trainer, weights

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def main(out: Path, devices: int) -> None:
    results = {}
    for case in CASES:
        torch.manual_seed(3)
        module = UserModule()
        run = trainer(
            out.parent,
            case.make(),
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        share = loader(8, rank=run.global_rank, world=devices)
        run.fit(module, share, share)
        run.test(module, share, verbose=False)
        logged = [value for _, value in sorted(run.callback_metrics.items())]
        results[case.name] = torch.cat([weights(module), torch.stack(logged)]) if logged else weights(module).clone()
        every = run.strategy.all_gather(results[case.name])
        assert torch.equal(every.reshape(devices, -1)[0], every.reshape(devices, -1)[-1]), case.name
    if run.is_global_zero:
        torch.save(results, out)


def refuse(out: Path) -> None:
    """Only rank 1 gets a bad first batch; both ranks must raise."""
    from lightning_robust.callbacks import PreemptiveSharpening
    from lightning_robust.errors import InputError

    module = UserModule()
    run = trainer(out.parent, PreemptiveSharpening(stages=["train"]), devices=2, strategy="ddp", limit_val_batches=0)
    batches = loader(4)
    batches.dataset.image *= 1.0 if run.global_rank == 0 else 200.0
    try:
        run.fit(module, batches)
    except InputError as error:
        out.with_suffix(f".{run.global_rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    if int(sys.argv[2]) == 2:
        refuse(Path(sys.argv[1]))
