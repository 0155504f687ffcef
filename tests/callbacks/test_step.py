"""The pipeline around a step: order, seeds, specs, modules with unusual steps."""

from __future__ import annotations

import copy
import inspect
from types import MappingProxyType

import kornia.augmentation as K
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from support.modules import Images, UserModule, loader, trainer
from torch import nn

from lightning_robust.callbacks import (
    AdversarialTraining,
    BatchAugmentation,
    FrequencyPooling,
    JacobianFrequencyRegularization,
    PreemptiveSharpening,
)
from lightning_robust.callbacks.callback import StepCallback
from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.functional import laplacian_sharpen
from lightning_robust.images import ImageSpec
from lightning_robust.nn import restore


class Flip(nn.Module):
    def forward(self, image):
        return image.flip(-1) * 0.5


class Looks(StepCallback):
    """Keeps the seeds and one draw of every training step."""

    transforms = True

    def __init__(self):
        super().__init__(stages=("train",), spec=None)
        self.seeds, self.draws = [], []

    def transform(self, step):
        self.seeds.append(step.seeds)
        self.draws.append(torch.rand(1).item())
        torch.testing.assert_close(step.logits(step.image), step.module(step.image))


def test_callbacks_act_in_the_order_of_the_trainer(tmp_path):
    sharpen, flip = PreemptiveSharpening(0.3, levels=None, stages=["test"]), BatchAugmentation(Flip(), stages=["test"])
    image = Images().image[:4]
    for callbacks, wanted in (
        ((sharpen, flip), Flip()(laplacian_sharpen(image, 0.3, levels=None))),
        ((flip, sharpen), laplacian_sharpen(Flip()(image), 0.3, levels=None)),
    ):
        module = UserModule()
        trainer(tmp_path, *callbacks).test(module, verbose=False)
        torch.testing.assert_close(module.seen[0], wanted)


def test_specs_that_differ_are_refused(tmp_path):
    first = PreemptiveSharpening(spec=ImageSpec((0.5,) * 3, (0.5,) * 3))
    second = BatchAugmentation(Flip(), spec=ImageSpec((0.4,) * 3, (0.5,) * 3))
    with pytest.raises(InputError, match="Declare one ImageSpec"):
        trainer(tmp_path, first, second).fit(UserModule())


def test_the_module_may_declare_the_spec(tmp_path):
    class Declares(UserModule):
        image_spec = ImageSpec((0.5,) * 3, (0.5,) * 3)

    data = Images()
    data.image = data.image * 2 - 1
    module = Declares()
    trainer(tmp_path, BatchAugmentation(Flip(), stages=["test"])).test(
        module, torch.utils.data.DataLoader(data, batch_size=4), verbose=False
    )
    torch.testing.assert_close(module.seen[0], (Images().image[:4].flip(-1) * 0.5) * 2 - 1)


def test_seeds_follow_the_sample_and_the_random_state_is_the_users(tmp_path):
    def run(batch_size):
        torch.manual_seed(5)
        looks = Looks()
        one = trainer(tmp_path, looks, limit_val_batches=0)
        one.fit(UserModule(), loader(batch_size))
        return torch.cat(looks.seeds), looks.draws

    (small, draws), (large, _), (again, same) = run(4), run(8), run(4)
    assert torch.equal(small, large)
    assert len(set(small.tolist())) == 16
    assert torch.equal(small, again)
    assert draws == same
    assert len(set(draws)) == 4


def test_the_random_state_of_the_user_is_left_alone(tmp_path):
    def next_draw(*callbacks):
        torch.manual_seed(5)
        trainer(tmp_path, *callbacks).fit(UserModule())
        return torch.rand(3)

    assert torch.equal(next_draw(Looks()), next_draw())


def test_any_seed_of_torch(tmp_path):
    module, looks = UserModule(), Looks()
    torch.manual_seed(-1)
    assert torch.initial_seed() > 2**63
    trainer(tmp_path, looks, fast_dev_run=True).fit(module)
    assert len(looks.seeds) == 1


def test_signatures_stay(tmp_path):
    class Short(UserModule):
        def training_step(self, batch):
            assert list(inspect.signature(self.training_step).parameters) == ["batch"]
            return super().training_step(batch, 0)

    module = Short()
    trainer(tmp_path, BatchAugmentation(Flip())).fit(module)
    assert module.calls["train"] == 4


def test_several_dataloaders(tmp_path):
    class Two(UserModule):
        def test_step(self, batch, batch_idx, dataloader_idx):
            self.seen.append(batch["image"])

    module = Two()
    trainer(tmp_path, PreemptiveSharpening()).test(module, [loader(16), loader(16)], verbose=False)
    for seen in module.seen:
        assert torch.equal(seen, laplacian_sharpen(Images().image, 0.15))


def test_targets_are_carried_along(tmp_path):
    class Segments(UserModule):
        def training_step(self, batch, batch_idx):
            image, mask = batch
            self.seen.append((image, mask))
            return super().training_step({"image": image, "label": torch.zeros(len(image), dtype=torch.long)}, 0)

    image = Images().image
    mask = image[:, :1].clone()
    feed = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(image, mask), batch_size=4)
    flip = K.AugmentationSequential(K.RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"])
    module = Segments()
    trainer(tmp_path, BatchAugmentation(flip), limit_val_batches=0).fit(module, feed)
    flipped, carried = module.seen[0]
    torch.testing.assert_close(flipped, image[:4].flip(-1))
    torch.testing.assert_close(carried, mask[:4].flip(-1))


def test_both_the_data_module_and_the_callback_augment(tmp_path):
    class Data(pl.LightningDataModule):
        batch_transform = Flip()

        def train_dataloader(self):
            return loader()

        val_dataloader = train_dataloader

    with pytest.raises(UnsupportedError, match="Keep one of them"):
        trainer(tmp_path, BatchAugmentation(Flip())).fit(UserModule(), datamodule=Data())


def test_uint8_is_refused_where_it_cannot_be_served(tmp_path):
    image = (Images().image * 255).to(torch.uint8)
    feed = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(image, Images().target), batch_size=4)
    with pytest.raises(InputError, match=r"float\(\) / 255"):
        trainer(tmp_path, BatchAugmentation(Flip())).fit(UserModule(), feed)


def test_order_matters_only_within_a_stage(tmp_path):
    callbacks = (AdversarialTraining(guard=None), PreemptiveSharpening())  # one trains, the other evaluates
    trainer(tmp_path, *callbacks, fast_dev_run=True).fit(UserModule())


def test_losses_and_outputs_of_other_types(tmp_path):
    class Odd(UserModule):
        def training_step(self, batch, batch_idx):
            return MappingProxyType({"loss": super().training_step(batch, batch_idx).reshape(1)})

    trainer(tmp_path, JacobianFrequencyRegularization(), fast_dev_run=True).fit(Odd())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_takes_up_the_seed_of_the_first(tmp_path):
    def run(seed, epochs, ckpt=None):
        looks = Looks()
        module = UserModule()
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, enable_version_counter=False)
        torch.manual_seed(seed)
        trainer(tmp_path, looks, keep, max_epochs=epochs, enable_checkpointing=True, limit_val_batches=0).fit(
            module, ckpt_path=ckpt
        )
        return looks

    whole = run(5, 2)
    resumed = run(6, 2, tmp_path / "epoch=0.ckpt")
    assert whole.draws[4:] == resumed.draws
    assert torch.equal(torch.cat(whole.seeds[4:]), torch.cat(resumed.seeds))


class Delegating(UserModule):
    """Steps that call each other, as many modules' do."""

    def test_step(self, batch, batch_idx):
        return self.validation_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        with torch.no_grad():
            return self.training_step(batch, batch_idx)


def test_a_step_that_calls_another_is_one_step_of_the_outer_stage(tmp_path):
    image = Images().image[:4]
    module = Delegating()
    sharpen = PreemptiveSharpening(0.3, levels=None)
    trainer(tmp_path, sharpen, limit_test_batches=1).test(module, verbose=False)
    assert torch.equal(module.seen[0], laplacian_sharpen(image, 0.3, levels=None))
    module = Delegating()
    trainer(tmp_path, AdversarialTraining(), limit_val_batches=1).validate(module, verbose=False)
    assert torch.equal(module.seen[0], image)


def test_a_copy_made_during_a_run_can_be_trained_and_saved(tmp_path):
    class Copies(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.copy = copy.deepcopy(pl_module)

    copies = Copies()
    first = [PreemptiveSharpening(0.3, levels=None, stages=["train"]), FrequencyPooling(), copies]
    trainer(tmp_path, *first, limit_train_batches=1).fit(UserModule())
    again = trainer(
        tmp_path,
        PreemptiveSharpening(0.3, levels=None, stages=["train"]),
        FrequencyPooling(),
        limit_train_batches=1,
        limit_val_batches=0,
    )
    copies.copy.seen.clear()
    again.fit(copies.copy)
    assert torch.equal(copies.copy.seen[-1], laplacian_sharpen(Images().image[:4], 0.3, levels=None))
    again.save_checkpoint(tmp_path / "copy.ckpt")
    assert restore(UserModule(), tmp_path / "copy.ckpt").net[0].weight.equal(copies.copy.net[0].weight)
