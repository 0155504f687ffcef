"""The swap of a module's layers through its whole life."""

from __future__ import annotations

import warnings

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from support.modules import UserModule, build_net, trainer, weights
from torch import nn
from torch.nn import functional as F

from lightning_robust.callbacks import FrequencyPooling
from lightning_robust.errors import InputError, NoEffectWarning, RobustWarning, UnsupportedError
from lightning_robust.nn import restore


def run(folder, callback, module=None, **options):
    module = module or UserModule()
    keep = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    one = trainer(folder, callback, keep, enable_checkpointing=True, **options)
    one.fit(module)
    return one, module, folder / "last.ckpt"


@pytest.fixture(autouse=True)
def one_folder_for_several_runs():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # the tests that evaluate a checkpoint leave ModelCheckpoint out
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        yield


def test_keys_stay_and_the_record_goes_into_the_checkpoint(tmp_path):
    _, module, path = run(tmp_path, FrequencyPooling())
    assert set(module.state_dict()) == set(UserModule().state_dict())
    checkpoint = torch.load(path, weights_only=True)
    record = checkpoint["lightning_robust"]["downsampling"]
    fresh = UserModule()
    restore(fresh, path)
    image = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(fresh(image), module(image))
    assert not torch.allclose(UserModule.load_from_checkpoint(path)(image), module(image))
    assert record


def test_another_swap_is_refused_and_a_plain_checkpoint_warned_of(tmp_path):
    _, _, path = run(tmp_path / "asap", FrequencyPooling("asap"))
    with pytest.raises(UnsupportedError, match="trained with another swap"):
        trainer(tmp_path, FrequencyPooling("flc")).test(UserModule(), ckpt_path=path, verbose=False)
    plain = trainer(tmp_path, ModelCheckpoint(tmp_path, filename="plain"), enable_checkpointing=True)
    plain.fit(UserModule())
    with pytest.warns(RobustWarning, match="no record"):
        trainer(tmp_path, FrequencyPooling()).test(UserModule(), ckpt_path=tmp_path / "plain.ckpt", verbose=False)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_are_built_later(tmp_path, hook):
    class Later(UserModule):
        def __init__(self):
            super().__init__()
            self.net = None

        def build(self, stage=None):
            if self.net is None:
                torch.manual_seed(1)
                self.net = build_net()

    setattr(Later, hook, Later.build)
    callback = FrequencyPooling()
    _, module, _ = run(tmp_path, callback, Later())
    assert len(callback.report.changed) == 2
    _, reference, _ = run(tmp_path, FrequencyPooling())
    torch.testing.assert_close(weights(module), weights(reference))
    assert "configure_model" not in vars(module)


def test_a_copier_before_it_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="Put FrequencyPooling first"):
        trainer(tmp_path, EMAWeightAveraging(), FrequencyPooling()).fit(UserModule())


def test_nothing_to_swap(tmp_path):
    class Flat(UserModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    with pytest.raises(UnsupportedError, match="no downsampling layer"):
        trainer(tmp_path, FrequencyPooling()).fit(Flat())
    with pytest.warns(NoEffectWarning, match="no downsampling layer"):
        trainer(tmp_path, FrequencyPooling(on_nothing="warn"), fast_dev_run=True).fit(Flat())


def test_what_no_swap_reaches_is_named_at_the_first_batch(tmp_path):
    class Functional(UserModule):
        def forward(self, image):
            return self.net(F.max_pool2d(image, 2).repeat_interleave(2, -1).repeat_interleave(2, -2))

    with pytest.warns(RobustWarning, match="max_pool2d"):
        trainer(tmp_path, FrequencyPooling(), fast_dev_run=True).fit(Functional())


def test_the_net_stays_swapped_after_the_run(tmp_path):
    one, module, _ = run(tmp_path, FrequencyPooling())
    before = module(torch.ones(1, 3, 8, 8))
    one.validate(module, verbose=False)
    torch.testing.assert_close(module(torch.ones(1, 3, 8, 8)), before)


def test_a_file_saved_after_the_run_carries_the_record(tmp_path):
    run = trainer(tmp_path, FrequencyPooling())
    run.fit(UserModule())
    run.save_checkpoint(tmp_path / "after.ckpt")
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(restore(UserModule(), tmp_path / "after.ckpt").eval()(image), run.lightning_module.eval()(image))


@pytest.mark.parametrize("weights_only", [False, True])
def test_weights_only_files_carry_the_record_too(tmp_path, weights_only):
    keep = ModelCheckpoint(tmp_path, filename="light", save_weights_only=weights_only)
    trainer(tmp_path, FrequencyPooling(), keep, enable_checkpointing=True).fit(UserModule())
    path = tmp_path / "light.ckpt"
    restore(UserModule(), path)
    with pytest.raises(UnsupportedError, match="trained with another swap"):
        trainer(tmp_path, FrequencyPooling("flc")).test(UserModule(), ckpt_path=path, verbose=False)


@pytest.mark.parametrize("late", [False, True])
def test_two_instances_share_a_net_and_its_checkpoint(tmp_path, late):
    class Later(UserModule):
        def configure_model(self):
            return None

    def both():
        return FrequencyPooling("asap", include=["net.0"]), FrequencyPooling("asap", include=["net.3"])

    build = Later if late else UserModule
    keep = ModelCheckpoint(tmp_path, filename="two", enable_version_counter=False)
    first, second = both()
    module = build()
    trainer(tmp_path, first, second, keep, enable_checkpointing=True).fit(module)
    resumed = build()
    trainer(tmp_path, *both(), max_epochs=2).fit(resumed, ckpt_path=tmp_path / "two.ckpt")
    for net in (module, resumed):
        assert type(net.net[0]) is not nn.Conv2d
        assert type(net.net[3]) is not nn.MaxPool2d


def test_hooks_of_the_instance_come_back(tmp_path):
    module = UserModule()
    calls = []
    module.configure_model = lambda: calls.append("configured")
    module.on_save_checkpoint = lambda checkpoint: calls.append("saved")
    own = module.configure_model
    run(tmp_path, FrequencyPooling(), module)
    assert calls[:1] == ["configured"]
    assert "saved" in calls
    assert module.configure_model is own


def test_what_was_not_reached_is_in_the_report(tmp_path):
    class Functional(UserModule):
        def forward(self, image):
            return self.net(image[:, :, ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2))

    callback = FrequencyPooling()
    for _ in range(2):  # each module is looked at
        with pytest.warns(RobustWarning, match="cannot reach"):
            trainer(tmp_path, callback, fast_dev_run=True).fit(Functional())
        assert callback.report.unreached


def test_a_pool_that_no_checkpoint_can_name_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="imported by name"):
        trainer(tmp_path, FrequencyPooling(lambda x, size: F.adaptive_avg_pool2d(x, size))).fit(UserModule())
