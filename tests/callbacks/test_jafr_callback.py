"""JaFR added by a callback equals JaFR written into the training step by hand."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from support.modules import UserModule, loader, trainer, weights
from torch import nn
from torch.nn import functional as F

from lightning_robust.callbacks import AdversarialTraining, JacobianFrequencyRegularization
from lightning_robust.callbacks.jafr import kept_batch_statistics
from lightning_robust.errors import UnsupportedError
from lightning_robust.functional import jacobian_frequency_bias

WEIGHT = 0.05


class HandWritten(UserModule):
    """The term inside the user's own step, by a second forward pass as in the released code."""

    def training_step(self, batch, batch_idx):
        image = batch["image"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(self(image), batch["label"]), image, create_graph=True)
        return super().training_step(batch, batch_idx) - WEIGHT * jacobian_frequency_bias(gradient)


def trained(tmp_path, module, *callbacks, **options):
    torch.manual_seed(0)
    trainer(tmp_path, *callbacks, limit_val_batches=0, **options).fit(module)
    return weights(module)


@pytest.mark.parametrize("forward", ["shared", "clean", "auto"])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "64-true"}])
def test_equals_a_hand_written_module(tmp_path, forward, options):
    by_hand = trained(tmp_path, HandWritten(), **options)
    by_callback = trained(tmp_path, UserModule(), JacobianFrequencyRegularization(WEIGHT, forward=forward), **options)
    torch.testing.assert_close(by_callback, by_hand, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(by_hand, trained(tmp_path, UserModule(), **options), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1024.0, 65536.0])
def test_the_loss_scale_of_half_precision_cancels(tmp_path, scale):
    exact = trained(tmp_path, UserModule(), JacobianFrequencyRegularization(WEIGHT))
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    half = trained(tmp_path, UserModule(), JacobianFrequencyRegularization(WEIGHT), plugins=plugin)
    torch.testing.assert_close(half, exact, rtol=0.02, atol=2e-3)


def test_a_forward_pass_of_its_own_keeps_the_running_statistics(tmp_path):
    def statistics(*callbacks):
        module = UserModule(norm=True)
        trained(tmp_path, module, *callbacks, max_steps=1)
        return {name: value.clone() for name, value in module.named_buffers()}

    plain = statistics()
    for forward in ("shared", "clean"):
        found = statistics(JacobianFrequencyRegularization(WEIGHT, forward=forward))
        for name, value in plain.items():
            torch.testing.assert_close(found[name], value, msg=f"{forward} {name}")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)])
def test_kept_statistics_of_every_norm(norm):
    before = {name: value.clone() for name, value in norm.named_buffers()}
    image = torch.rand(4, 3, 5, 5) + 1
    wanted = type(norm)(3).train()(image)
    with kept_batch_statistics(norm):
        found = norm(image)
    torch.testing.assert_close(found, wanted)
    for name, value in norm.named_buffers():
        assert torch.equal(value, before[name]), name
    norm(image)
    assert not torch.equal(norm.running_mean, before["running_mean"])


def test_auto_says_what_it_takes(tmp_path):
    alone, behind, compiled = (JacobianFrequencyRegularization(WEIGHT) for _ in range(3))
    trainer(tmp_path, alone, fast_dev_run=True).fit(UserModule())
    trainer(tmp_path, AdversarialTraining(guard=None), behind, fast_dev_run=True).fit(UserModule())
    module = UserModule()
    module.net.compile(backend="eager")
    trainer(tmp_path, compiled, fast_dev_run=True).fit(module)
    assert (alone.takes, behind.takes, compiled.takes) == ("shared", "clean", "clean")
    with pytest.raises(UnsupportedError, match="double backward"):
        trainer(tmp_path, JacobianFrequencyRegularization(forward="shared")).fit(module)


def test_behind_an_attack_the_jacobian_is_that_of_the_clean_image(tmp_path):
    seen = []

    class Net(UserModule):
        def forward(self, image):
            if torch.is_grad_enabled() and image.requires_grad and self.training:
                seen.append(image.detach().clone())
            return super().forward(image)

    callbacks = (AdversarialTraining(guard=None, mode="eval"), JacobianFrequencyRegularization(WEIGHT))
    trainer(tmp_path, *callbacks, limit_train_batches=1, limit_val_batches=0).fit(Net())
    torch.testing.assert_close(seen[-1], next(iter(loader()))["image"])


@pytest.mark.parametrize("direction", ["low", "high"])
def test_the_term_moves_the_jacobian_its_way(tmp_path, direction):
    def bias(weight):
        module = UserModule()
        callback = JacobianFrequencyRegularization(weight, direction=direction)
        trained(tmp_path, module, callback, max_epochs=20)
        batch = next(iter(loader(16)))
        image = batch["image"].requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(module(image), batch["label"]), image)
        return jacobian_frequency_bias(gradient, direction=direction).item()

    assert bias(0.5) > bias(0.0) + 0.05


def test_a_loss_that_ignores_the_image_is_named(tmp_path):
    class Ignores(UserModule):
        def training_step(self, batch, batch_idx):
            return self.net[5].weight.square().sum()

    with pytest.raises(UnsupportedError, match="does not depend on the image"):
        trainer(tmp_path, JacobianFrequencyRegularization(forward="shared")).fit(Ignores())


def test_logits_under_a_key(tmp_path):
    class Keyed(UserModule):
        def forward(self, image):
            return {"logits": self.net(image)}

        def _loss(self, batch, name):
            return F.cross_entropy(self(batch["image"])["logits"], batch["label"])

    with pytest.raises(UnsupportedError, match="output_key"):
        trainer(tmp_path, JacobianFrequencyRegularization(forward="clean"), limit_val_batches=0).fit(Keyed())
    callback = JacobianFrequencyRegularization(WEIGHT, forward="clean", output_key="logits")
    by_key = trained(tmp_path, Keyed(), callback)
    torch.testing.assert_close(
        by_key, trained(tmp_path, UserModule(), JacobianFrequencyRegularization(WEIGHT, forward="clean"))
    )


def test_in_place_first_layer(tmp_path):
    class InPlace(UserModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.ReLU(inplace=True), *self.net)

    module = InPlace()
    trainer(tmp_path, JacobianFrequencyRegularization(), fast_dev_run=True).fit(module)
    assert module.calls["train"] == 1


def test_value_is_logged(tmp_path):
    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            assert "jafr/bias" in trainer.progress_bar_metrics

    trainer(tmp_path, JacobianFrequencyRegularization(), Look()).fit(UserModule())
