"""Adversarial training and its guard."""

from __future__ import annotations

import pytest
import torch
from support.modules import Images, UserModule, loader, trainer, weights
from torch.nn import functional as F

from lightning_robust.attacks import pgd
from lightning_robust.callbacks import (
    AdversarialTraining,
    BatchAugmentation,
    OverfittingGuard,
    PreemptiveSharpening,
)
from lightning_robust.callbacks.overfitting_guard import GuardSet
from lightning_robust.errors import InputError, RobustWarning, UnsupportedError

EPS = 8 / 255


def first_batch(tmp_path, callback, batch_size=8, module=None):
    module = module or UserModule()
    torch.manual_seed(0)
    run = trainer(tmp_path, callback, limit_train_batches=1, limit_val_batches=0)
    run.fit(module, loader(batch_size))
    return module.seen[0]


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.5)])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_net_sees_images_inside_the_budget_with_a_higher_loss(tmp_path, attack, norm, eps, mode):
    seen = first_batch(tmp_path, AdversarialTraining(eps, attack=attack, norm=norm, mode=mode, guard=None))
    clean = Images().image[:8]
    change = (seen - clean).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max() <= eps * (1 + 1e-5)
    assert size.min() > eps / 4
    assert seen.min() >= 0
    assert seen.max() <= 1
    fresh = UserModule()
    target = Images().target[:8]
    assert F.cross_entropy(fresh(seen), target) > F.cross_entropy(fresh(clean), target)


def test_an_image_is_attacked_alike_in_any_batch(tmp_path):
    callback = AdversarialTraining(EPS, guard=None)
    whole, half = first_batch(tmp_path, callback, 8), first_batch(tmp_path, callback, 4)
    torch.testing.assert_close(half[:1], whole[:1])


def test_soft_targets_and_a_loss_of_the_user(tmp_path):
    class Soft(UserModule):
        def _loss(self, batch, name):
            self.seen.append(batch["image"])
            return F.binary_cross_entropy_with_logits(self(batch["image"]), batch["label"])

    data = Images()
    data.target = F.one_hot(data.target, 4).float()
    feed = torch.utils.data.DataLoader(data, batch_size=8)

    def per_sample(logits, target):
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    for loss_fn in (None, per_sample):
        module = Soft()
        callback = AdversarialTraining(EPS, loss_fn=loss_fn, guard=OverfittingGuard(every_n_steps=2))
        with pytest.warns(RobustWarning, match="targets are no class indices"):
            trainer(tmp_path, callback, limit_val_batches=0).fit(module, feed)
        assert (module.seen[0] - data.image[:8]).abs().max() > EPS / 2


def test_the_batch_needs_a_target(tmp_path):
    class Alone(UserModule):
        def training_step(self, batch, batch_idx):
            return self(batch).square().mean()

    feed = torch.utils.data.DataLoader(Images().image, batch_size=8)
    with pytest.raises(InputError, match="target_key"):
        trainer(tmp_path, AdversarialTraining(), limit_val_batches=0).fit(Alone(), feed)


def test_an_attack_before_a_transform_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="put the attacking callback last"):
        trainer(tmp_path, AdversarialTraining(), PreemptiveSharpening(stages=["train"])).fit(UserModule())


def collapsing(monkeypatch):
    """Counts under FGSM and PGD, of 10 images; the latter fall at the third check."""
    readings = iter([(5, 5, 10), (6, 5, 10), (9, 1, 10), (9, 1, 10)])
    monkeypatch.setattr(GuardSet, "counts", lambda self, network, **_: next(readings))


def guarded(tmp_path, action):
    states = []

    class Keeps(UserModule):
        def on_train_batch_end(self, *_):
            states.append(weights(self).clone())

    guard = OverfittingGuard(every_n_steps=1, images=4, action=action)
    callback = AdversarialTraining(EPS, guard=guard)
    run = trainer(tmp_path, callback, limit_val_batches=0)
    with pytest.warns(RobustWarning, match="fell from 0.50 to 0.10"):
        run.fit(Keeps())
    assert vars(callback)["_kept"] is None  # nothing of the run is held
    return run, states


def test_guard_warns_stops_or_restores(tmp_path, monkeypatch):
    collapsing(monkeypatch)
    run, _ = guarded(tmp_path, "warn")
    assert run.global_step == 4
    collapsing(monkeypatch)
    run, _ = guarded(tmp_path, "stop")
    assert run.global_step == 3
    collapsing(monkeypatch)
    run, states = guarded(tmp_path, "restore")
    assert run.global_step == 4
    assert torch.equal(states[2], states[1])  # the third step is undone


def test_a_second_run_starts_with_a_new_baseline(tmp_path, monkeypatch):
    readings = iter([(9, 9, 10), (1, 1, 10)])
    monkeypatch.setattr(GuardSet, "counts", lambda self, network, **_: next(readings))
    callback = AdversarialTraining(EPS, guard=OverfittingGuard(every_n_steps=4, images=4))
    for _ in range(2):  # a fall from one run to the next is no collapse, and warnings are errors
        trainer(tmp_path, callback, limit_val_batches=0).fit(UserModule())


def checks(tmp_path, monkeypatch, module=None, samples=16, **options):
    steps = []
    monkeypatch.setattr(GuardSet, "counts", lambda self, network, **_: steps.append(run.global_step) or (1, 1, 2))
    run = trainer(
        tmp_path,
        AdversarialTraining(EPS, guard=OverfittingGuard(every_n_steps=3, images=4)),
        limit_val_batches=0,
        **options,
    )
    run.fit(module or UserModule(), loader(2, samples))
    return steps


def test_guard_keeps_its_rhythm_under_accumulation(tmp_path, monkeypatch):
    # 8 batches in windows of 3: steps after batches 3, 6 and 8
    assert checks(tmp_path, monkeypatch, accumulate_grad_batches=3, max_epochs=3) == [3, 6, 9]
    assert checks(tmp_path, monkeypatch, UserModule(manual=True)) == [3, 6]


def test_guard_measures_what_an_attack_by_hand_measures():
    module, data = UserModule().train(), Images()
    kept = GuardSet(8)
    kept.collect(data.image[:6], data.target[:6])
    kept.collect(data.image[6:], data.target[6:])
    assert len(kept) == 8
    _, right, count = kept.counts(module, eps=EPS, norm="linf", steps=10)
    assert module.training
    module.eval()
    adversarial = pgd(module, data.image[:8], data.target[:8], eps=EPS, steps=10)
    by_hand = int((module(adversarial).argmax(1) == data.target[:8]).sum())
    assert count == 8
    assert abs(right - by_hand) <= 1  # other random starts


def test_guard_keeps_the_images_as_the_data_pipeline_made_them(tmp_path, monkeypatch):
    kept = []
    collect = GuardSet.collect
    monkeypatch.setattr(
        GuardSet, "collect", lambda self, image, target: kept.append(image) or collect(self, image, target)
    )

    class Blank(torch.nn.Module):
        def forward(self, image):
            return image * 0

    callbacks = (BatchAugmentation(Blank()), AdversarialTraining(EPS))
    trainer(tmp_path, *callbacks, limit_train_batches=1, limit_val_batches=0).fit(UserModule())
    assert torch.equal(kept[0], Images().image[:4])


def test_a_budget_in_levels_is_refused():
    with pytest.raises(InputError, match="8 / 255"):
        AdversarialTraining(eps=8)


def test_a_module_without_forward_is_told_what_to_pass(tmp_path):
    class Bare(UserModule):
        def forward(self, *args):
            raise NotImplementedError

    with pytest.raises(UnsupportedError, match="forward_fn"):
        trainer(tmp_path, AdversarialTraining(), limit_val_batches=0).fit(Bare())


def test_guard_settings():
    with pytest.raises(InputError, match="action"):
        OverfittingGuard(action="panic")
    with pytest.raises(InputError, match="positive"):
        OverfittingGuard(every_n_steps=0)
