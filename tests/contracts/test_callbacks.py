"""What every callback promises; each one of the registry goes through all of it."""

from __future__ import annotations

import copy
import logging
import pickle

import kornia.augmentation as K
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision
from support.defenses import Coarse
from support.modules import CASES, Case, Images, UserModule, loader, patched_names, trainer, weights
from torch.utils.data import DataLoader

from lightning_robust.errors import UnsupportedError

pytestmark = [
    # Lightning says so of every folder that a second run shares
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # the nets here are too small to be anything but unstable
    pytest.mark.filterwarnings("ignore:Catastrophic overfitting.*"),
]


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request):
    return request.param


def fit(folder, case: Case, module: pl.LightningModule | None = None, **options):
    torch.manual_seed(3)
    module = module or UserModule()
    run = trainer(folder, case.make(), **options)
    run.fit(module)
    return run, module


def plain(folder, **options):
    torch.manual_seed(3)
    module = UserModule()
    trainer(folder, **options).fit(module)
    return module


def test_trains_a_module_without_editing_it(case, tmp_path):
    run, module = fit(tmp_path, case)
    assert run.global_step == 4
    assert module.calls["train"] == 4  # a step never runs twice
    assert torch.isfinite(weights(module)).all()
    same = torch.equal(weights(module), weights(plain(tmp_path)))
    assert same != case.changes_training


def test_the_net_sees_the_transformed_image_and_the_batch_is_untouched(case, tmp_path):
    module = UserModule()
    torch.manual_seed(3)
    run = trainer(tmp_path, case.make(), num_sanity_val_steps=0, limit_val_batches=1, limit_train_batches=1)
    batches = list(loader())
    kept = copy.deepcopy(batches)
    feed = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    run.fit(module, feed, feed)
    for image, stage in zip(module.seen, ("train", "validate"), strict=True):
        changed = not torch.allclose(image, kept[0]["image"], atol=1e-6)
        assert changed == (stage in case.effect_in), stage
        assert image.min() >= 0
        assert image.max() <= 1
    for before, after in zip(kept, batches, strict=True):
        assert torch.equal(before["image"], after["image"])


def test_evaluates_in_inference_mode(case, tmp_path):
    module = UserModule()
    run = trainer(tmp_path, case.make())
    run.validate(module, verbose=False)
    run.test(module, verbose=False)
    predictions = run.predict(module)
    assert len(predictions) == 4
    for image, stage in zip(module.seen[::4], ("validate", "test", "predict"), strict=True):
        assert (not torch.equal(image, Images().image[:4])) == (stage in case.effect_in)


def test_gradient_accumulation_equals_the_larger_batch_where_nothing_is_random(case, tmp_path):
    if case.name.startswith(("jafr", "adversarial")):
        _, module = fit(tmp_path, case, accumulate_grad_batches=2)  # the spectrum of a batch is no mean of halves
        assert torch.isfinite(weights(module)).all()
        return
    halves, whole = UserModule(), UserModule()
    trainer(tmp_path, case.make(), accumulate_grad_batches=2).fit(halves, loader(4))
    trainer(tmp_path, case.make()).fit(whole, loader(8))
    torch.testing.assert_close(weights(halves), weights(whole), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_precision_changes_little_of_the_effect(case, tmp_path, precision):
    def trained(callbacks, precision):
        options = {"gradient_clip_val": 1.0, "precision": precision}
        if precision == "16-mixed":  # the flag alone becomes bf16 on the CPU
            plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
            options = {"gradient_clip_val": 1.0, "plugins": plugin}
        torch.manual_seed(3)
        module = UserModule()
        run = trainer(tmp_path, *callbacks, **options)
        run.fit(module)
        run.test(module, verbose=False)
        return weights(module).double()

    def effect(precision):
        return trained([case.make()], precision) - trained([], precision)

    found, wanted = effect(precision), effect("32-true")
    assert torch.isfinite(found).all()
    if case.changes_training and precision != "bf16-true":  # steps of 8 bits are as large as the effect
        assert (found - wanted).norm() < 0.4 * wanted.norm()


def test_manual_optimization_works_or_is_refused(case, tmp_path):
    module = UserModule(manual=True)
    run = trainer(tmp_path, case.make())
    if case.manual:
        run.fit(module)
        assert module.calls["train"] == 4
    else:
        with pytest.raises(UnsupportedError, match="automatic_optimization"):
            run.fit(module)


# torch.compile looks at the gradient of an input that is no leaf, and torch warns of it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_compiled_net(case, tmp_path):
    module, eager = UserModule(), UserModule()
    module.net.compile(backend="aot_eager")
    torch.manual_seed(3)
    trainer(tmp_path, case.make(), limit_train_batches=2, limit_val_batches=1).fit(module)
    torch.manual_seed(3)
    trainer(tmp_path, case.make(), limit_train_batches=2, limit_val_batches=1).fit(eager)
    torch.testing.assert_close(weights(module), weights(eager), atol=1e-4, rtol=1e-3)


def test_resumed_run_equals_the_uninterrupted_one(case, tmp_path):
    def run(folder, epochs, ckpt=None):
        module = UserModule()
        torch.manual_seed(3 if ckpt is None else 99)  # another process draws another seed
        keep = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
        one = trainer(folder, case.make(), keep, max_epochs=epochs, enable_checkpointing=True)
        one.fit(module, ckpt_path=ckpt)
        return module

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "part", 1)
    resumed = run(tmp_path / "part", 2, tmp_path / "part" / "epoch=0.ckpt")
    assert torch.equal(weights(whole), weights(resumed))


def test_checkpoint_is_plain_data_and_best_is_tested(case, tmp_path):
    module = UserModule()
    keep = ModelCheckpoint(tmp_path, monitor="val_loss")
    run = trainer(tmp_path, case.make(), keep, enable_checkpointing=True)
    run.fit(module)
    checkpoint = torch.load(keep.best_model_path, weights_only=True)
    assert any(case.make().state_key in key for key in checkpoint["callbacks"])
    run.test(ckpt_path="best", verbose=False)
    assert module.calls["test"] == 4


def test_fast_dev_run_and_sanity_check(case, tmp_path):
    _, module = fit(tmp_path, case, fast_dev_run=True)
    assert module.calls["train"] == 1
    _, module = fit(tmp_path, case, num_sanity_val_steps=2)
    assert module.calls["validate"] == 6


def test_second_fit_with_the_same_objects(case, tmp_path):
    callback, module = case.make(), UserModule()
    run = trainer(tmp_path, callback)
    run.fit(module)
    run.fit_loop.max_epochs = 2
    run.fit(module)
    assert module.calls["train"] == 8


def test_two_instances(case, tmp_path):
    if case.name == "pooling":
        pytest.skip("two swaps share a net in tests/callbacks/test_pooling_callback.py")
    first, second = case.make(), case.make()
    # settings differ, so that a checkpoint tells the two apart
    name, value = {
        "sharpening": ("alpha", 0.3),
        "purification": ("defense", Coarse()),
        "purification-votes": ("votes", 2),
        "augmentation": ("augmentation", K.RandomVerticalFlip(p=1.0)),
        "adversarial": ("eps", 0.25),
    }.get(case.name, ("weight", 0.02))
    setattr(second, name, value)
    module, single = UserModule(), UserModule()
    trainer(tmp_path, first, second, enable_checkpointing=True).fit(module)
    trainer(tmp_path, case.make(), enable_checkpointing=False).fit(single)
    assert not torch.equal(weights(module), weights(single)) or not case.changes_training


@pytest.mark.parametrize("behind", [EMAWeightAveraging, lambda: StochasticWeightAveraging(swa_lrs=0.1)])
@pytest.mark.filterwarnings("ignore:.*configure_model.*")
def test_weight_averaging_behind_it(case, tmp_path, behind):
    module = UserModule(norm=True)
    trainer(tmp_path, case.make(), behind(), max_epochs=2).fit(module)
    assert torch.isfinite(weights(module)).all()


def test_module_is_clean_afterwards_and_copies(case, tmp_path):
    _, module = fit(tmp_path, case)
    assert list(patched_names(module)) == []
    image = Images().image
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(clone(image), module(image))


def test_copies_made_in_the_middle_of_a_run(case, tmp_path):
    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for clone in (copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))):
                with torch.no_grad():
                    clone.net[0].weight.zero_()
                clone.log = lambda *a, **k: None
                count = pl_module.calls["train"]
                clone.training_step(batch, 0)
                assert pl_module.calls["train"] == count  # the copy's own step ran
                assert clone.calls["train"] == count + 1

    trainer(tmp_path, case.make(), Copies(), limit_train_batches=1).fit(UserModule())


def test_module_is_clean_after_an_error(case, tmp_path):
    class Breaks(UserModule):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            raise RuntimeError("broken on purpose")

    module = Breaks()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trainer(tmp_path, case.make()).fit(module)
    assert [name for name in patched_names(module) if name.endswith("_step") or name == "configure_model"] == []


@pytest.mark.parametrize("returned", ["dict", "none"])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_whatever_the_step_returns(case, tmp_path, returned):
    class Returns(UserModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return {"loss": loss, "kept": 7} if returned == "dict" else None

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if returned == "dict":
                assert outputs["kept"] == 7

    module = Returns()
    trainer(tmp_path, case.make(), Look()).fit(module)
    assert module.calls["train"] == 4


def test_sharded_strategies_work_or_are_refused(case, tmp_path, monkeypatch):
    module = UserModule()
    run = trainer(tmp_path, case.make())
    renamed = type("FSDPStrategy", (type(run.strategy),), {})
    run.strategy.__class__ = renamed
    if case.sharded:
        run.fit(module)
    else:
        with pytest.raises(UnsupportedError, match="FSDPStrategy"):
            run.fit(module)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`")
def test_dataloader_iter_is_refused_by_what_needs_the_batch(case, tmp_path):
    class Iterates(UserModule):
        def training_step(self, dataloader_iter):
            batch, *_ = next(dataloader_iter)
            return self._loss(batch, "train")

    run = trainer(tmp_path, case.make())
    if case.name == "pooling":
        run.fit(Iterates())
    else:
        with pytest.raises(UnsupportedError, match="dataloader_iter"):
            run.fit(Iterates())


def test_with_the_lightning_package(case, tmp_path):
    import lightning as L
    from support.modules import UserSteps, trainer_options

    class Module(UserSteps, L.LightningModule):
        def __init__(self):
            super().__init__()
            self.prepare()

    module = Module()
    run = L.Trainer(callbacks=[case.make()], **trainer_options(tmp_path))
    run.fit(module)
    run.test(module, verbose=False)
    assert module.calls["train"] == 4
    assert list(patched_names(module)) == []
