"""Adversarial training and its guard."""

from __future__ import annotations

import pytest
import torch
from support.modules import Images, UserModule, loader, trainer, weights
from torch.nn import functional as F

from lightning_robust.attacks import pgd
from lightning_robust.callbacks import AdversarialTraining, OverfittingGuard, PreemptiveSharpening
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
        callback = AdversarialTraining(EPS, loss_fn=loss_fn, guard=OverfittingGuard(every_n_steps=1))
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
    """Accuracies under PGD that fall at the third check."""
    readings = iter([(0.5, 0.5), (0.6, 0.5), (0.9, 0.1), (0.9, 0.1)])

    def accuracy(self, network, **_):
        return tuple(torch.tensor(value) for value in next(readings))

    monkeypatch.setattr(GuardSet, "accuracy", accuracy)


def guarded(tmp_path, action):
    module = UserModule()
    states = []

    class Keeps(UserModule):
        def on_train_batch_end(self, *_):
            states.append(weights(self).clone())

    module = Keeps()
    guard = OverfittingGuard(every_n_steps=1, images=4, action=action)
    run = trainer(tmp_path, AdversarialTraining(EPS, guard=guard), limit_val_batches=0)
    with pytest.warns(RobustWarning, match="fell from 0.50 to 0.10"):
        run.fit(module)
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


def test_guard_measures_what_an_attack_by_hand_measures():
    module, data = UserModule().eval(), Images()
    kept = GuardSet(8)
    kept.collect(data.image[:6], data.target[:6])
    kept.collect(data.image[6:], data.target[6:])
    assert kept.complete
    _, accuracy = kept.accuracy(module, eps=EPS, norm="linf", steps=10)
    adversarial = pgd(module, data.image[:8], data.target[:8], eps=EPS, steps=10)
    by_hand = (module(adversarial).argmax(1) == data.target[:8]).float().mean()
    assert accuracy.item() == pytest.approx(by_hand.item(), abs=0.13)  # other random starts


def test_guard_settings():
    with pytest.raises(InputError, match="action"):
        OverfittingGuard(action="panic")
    with pytest.raises(InputError, match="positive"):
        OverfittingGuard(every_n_steps=0)
