"""What InputPurification hands to the step or to the net, refuses, logs and shows."""

from __future__ import annotations

import copy
import math
import sys

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from support.defenses import Coarse, Grain
from support.modules import Images, UserModule, build_net, loader, patched_names, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.callbacks import BatchAugmentation, InputPurification, PreemptiveSharpening
from lightning_robust.callbacks.callback import StepCallback
from lightning_robust.cli.main import main
from lightning_robust.defenses import Defense, MatchedNoise, PixelDeflection, Purified, Sequence, majority
from lightning_robust.defenses.purified import purified_logits
from lightning_robust.errors import InputError, UnsupportedError
from lightning_robust.functional import laplacian_sharpen
from lightning_robust.images import ImageSpec
from lightning_robust.models import ImageClassifier, SmallCNN
from lightning_robust.nn import RobustActivationMap
from lightning_robust.seeds import derive, of_content

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized(image: Tensor) -> Tensor:
    return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Predicts(UserModule):
    """Keeps the logits of its test steps."""

    def __init__(self):
        super().__init__()
        self.logits = []

    def test_step(self, batch, batch_idx):
        self.seen.append(batch["image"])
        self.logits.append(self(batch["image"]))


class Looks(StepCallback):
    """Keeps the steps."""

    transforms = True

    def __init__(self, *, attacks=False):
        super().__init__(stages=("test",), spec=None)
        self.attacks, self.steps = attacks, []

    def transform(self, step):
        self.steps.append(step)
        if self.attacks:
            step.image = (step.image + 0.1).clamp(0, 1)


def feed(image, batch_size=4):
    data = Images()
    data.image = image
    return torch.utils.data.DataLoader(data, batch_size=batch_size)


def wanted_votes(module, seeds, votes, image=None):
    image = Images().image[: len(seeds)] if image is None else image
    with torch.no_grad():
        return majority(purified_logits(module, Grain(), image, seeds=derive(seeds, "purification"), votes=votes))


def test_the_step_gets_purified_images(tmp_path):
    module, looks = UserModule(), Looks()
    trainer(tmp_path, looks, InputPurification(Grain())).test(module, verbose=False)
    for number, step in enumerate(looks.steps):
        image = Images().image[4 * number : 4 * number + 4]
        assert torch.equal(module.seen[number], Grain()(image, seeds=derive(step.seeds, "purification")))


def test_a_sample_meets_the_same_draws_in_any_batch(tmp_path):
    def run(batch_size, votes):
        torch.manual_seed(1)
        module = Predicts()
        trainer(tmp_path, InputPurification(Grain(), votes)).test(module, loader(batch_size), verbose=False)
        return torch.cat(module.seen), torch.cat(module.logits)

    for votes in (1, 3):
        for small, large in zip(run(2, votes), run(8, votes), strict=True):
            torch.testing.assert_close(small, large)


@pytest.mark.parametrize("votes_at_once", [None, 2])
def test_the_net_votes_and_the_step_runs_once(tmp_path, votes_at_once):
    module, looks = Predicts(), Looks()
    callback = InputPurification(Grain(), 5, votes_at_once=votes_at_once)
    trainer(tmp_path, looks, callback).test(module, verbose=False)
    assert len(module.seen) == 4
    assert torch.equal(torch.cat(module.seen), Images().image)
    torch.testing.assert_close(module.logits[0], wanted_votes(module, looks.steps[0].seeds, 5))
    assert not torch.allclose(module.logits[0], module(Images().image[:4]).log_softmax(dim=1), atol=1e-2)


class Backbone(UserModule):
    """Its forward does something else; the step calls a submodule, in a way of its own."""

    def forward(self, image):
        raise AssertionError("nobody calls it")

    def test_step(self, batch, batch_idx):
        self.seen.append(self.net(input=batch["image"]))


@pytest.mark.parametrize("compiled", [None, "in place", "wrapped"])
def test_a_named_submodule_votes(tmp_path, compiled):
    module, looks = Backbone(), Looks()
    eager, graphs = copy.deepcopy(module.net), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if compiled == "in place":
        module.net.compile(backend=backend)
    elif compiled == "wrapped":
        module.net = torch.compile(module.net, backend=backend)
    before = dict(vars(module.net))
    options = {"spec": ImageSpec(MEAN, STD), "network": "net"}
    run = trainer(tmp_path, looks, InputPurification(Grain(), 3, **options))
    run.test(module, feed(normalized(Images().image)), verbose=False)
    wanted = wanted_votes(lambda image: eager(normalized(image)), looks.steps[0].seeds, 3)
    torch.testing.assert_close(module.seen[0], wanted, atol=1e-4, rtol=1e-4)
    assert dict(vars(module.net)) == before
    assert len(graphs) == (compiled is not None)  # the net alone is compiled, once


def test_normalized_batches_are_purified_in_image_space(tmp_path):
    module = UserModule()
    callback = InputPurification(Coarse(), spec=ImageSpec(MEAN, STD))
    trainer(tmp_path, callback).test(module, feed(normalized(Images().image)), verbose=False)
    torch.testing.assert_close(module.seen[0], normalized(Coarse()(Images().image[:4])), atol=1e-5, rtol=0)


def test_other_batch_sizes_and_further_arguments_inside_the_step(tmp_path):
    """A net that also takes one number per image is run once per vote; half a batch draws by its content."""
    sizes = []

    class Halves(UserModule):
        def forward(self, image, scale, *, shift):
            sizes.append(len(image))
            return self.net(image) * scale + shift

        def test_step(self, batch, batch_idx):
            for image in batch["image"].split(2):
                self.seen.append(self(image, torch.ones(2, 1), shift=1))

    def run():
        torch.manual_seed(4)
        module = Halves()
        trainer(tmp_path, InputPurification(Grain(), 3)).test(module, verbose=False)
        return torch.cat(module.seen)

    found = run()
    assert sizes == [2] * 8 * 3
    assert torch.equal(found, run())
    torch.manual_seed(4)
    module = Predicts()
    looks = Looks()
    trainer(tmp_path, looks, InputPurification(Grain(), 3)).test(module, verbose=False)
    image = Images().image[2:4]
    seeds = derive(of_content(image), 0)  # the seed of the run is in it: other than this, and not those of the step
    assert not torch.allclose(found[2:4], wanted_votes(lambda x: module.net(x) + 1, seeds, 3, image))


def test_predict_returns_votes(tmp_path):
    module = UserModule()
    (first, *_) = trainer(tmp_path, InputPurification(Grain(), 4)).predict(module)
    torch.testing.assert_close(first.exp().sum(dim=1), torch.ones(4))
    counts = first.exp() * 5
    assert (counts - counts.floor()).min() > 0  # counts and a mean probability


def test_the_net_is_its_own_again_after_each_step_even_if_it_fails(tmp_path):
    class Fails(UserModule):
        def on_test_batch_end(self, outputs, batch, batch_idx):
            assert "forward" not in vars(self)

        def test_step(self, batch, batch_idx):
            self(batch["image"])
            clone = copy.deepcopy(self)
            assert torch.equal(clone(batch["image"]), self.net(batch["image"]))  # a copy does not vote
            if batch_idx == 1:
                raise ArithmeticError("on purpose")

    module = Fails()
    with pytest.raises(ArithmeticError, match="on purpose"):
        trainer(tmp_path, InputPurification(Grain(), 3)).test(module, verbose=False)
    assert "forward" not in vars(module)
    assert list(patched_names(module)) == []


def test_a_forward_that_was_on_the_instance_comes_back(tmp_path):
    module = Predicts()
    own = module.forward = lambda image: 2 * module.net(image)
    looks = Looks()
    trainer(tmp_path, looks, InputPurification(Grain(), 2)).test(module, verbose=False)
    assert vars(module)["forward"] is own
    torch.testing.assert_close(module.logits[0], wanted_votes(own, looks.steps[0].seeds, 2))


class WithoutForward(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = build_net()

    def test_step(self, batch, batch_idx):
        self.net(batch["image"])

    def test_dataloader(self):
        return loader()


class Named(UserModule):
    def forward(self, image):
        return {"logits": self.net(image)}

    def test_step(self, batch, batch_idx):
        self(batch["image"])


class TakesBatch(UserModule):
    def forward(self, batch):
        return self.net(batch["image"])

    def test_step(self, batch, batch_idx):
        self(batch)


class NormalizesInStep(UserModule):
    def test_step(self, batch, batch_idx):
        self.net(normalized(batch["image"]))


@pytest.mark.parametrize(
    ("module", "network", "message"),
    [
        (Backbone, None, r"Backbone.forward was not called in a test step .* example one of \['net'\]"),
        (WithoutForward, None, r"has no forward. Name the submodule .* \['net'\]"),
        (UserModule, "head", r"no submodule 'head'. Name the submodule .* \['net'\]"),
        (Named, None, r"returned dict with 'logits'.*by network="),
        (TakesBatch, None, r"called with dict with 'image'.*by network="),
        (NormalizesInStep, "net", r"the votes of InputPurification need them in \[0, 1\].*leave network out"),
    ],
)
def test_nets_that_cannot_vote_are_refused_with_the_remedy(tmp_path, module, network, message):
    run = trainer(tmp_path, InputPurification(Grain(), 2, network=network))
    with pytest.raises((UnsupportedError, InputError), match=message):
        run.test(module(), verbose=False)


def test_modules_without_a_forward_are_purified_by_one_vote(tmp_path):
    trainer(tmp_path, InputPurification(Coarse())).test(WithoutForward(), verbose=False)


def test_purification_stands_behind_publishing_and_attack(tmp_path):
    class After(Looks):
        purifies = True

    module, attack, after = UserModule(), Looks(attacks=True), After()
    run = trainer(tmp_path, PreemptiveSharpening(0.3), attack, InputPurification(Coarse()), after)
    run.test(module, verbose=False)
    published = laplacian_sharpen(Images().image[:4], 0.3)
    torch.testing.assert_close(module.seen[0], Coarse()((published + 0.1).clamp(0, 1)))
    assert torch.equal(after.steps[0].published, published)


@pytest.mark.parametrize("behind", [PreemptiveSharpening, lambda: Looks(attacks=True)])
def test_purifying_before_publishing_or_an_attack_is_refused(tmp_path, behind):
    with pytest.raises(UnsupportedError, match="put the purifying callback last"):
        trainer(tmp_path, InputPurification(Coarse()), behind()).test(UserModule(), verbose=False)


def test_two_of_them_log_apart_what_each_changed(tmp_path):
    module = UserModule()
    first, second = MatchedNoise(0.02), MatchedNoise(0.2)
    run = trainer(tmp_path, InputPurification(first), InputPurification(second))
    run.test(module, verbose=False)
    # noise of a given RMSE has a given distortion; clipping to [0, 1] takes some of it back
    assert run.logged_metrics["purification/psnr/test"] == pytest.approx(-20 * math.log10(0.02), abs=0.5)
    assert run.logged_metrics["purification-2/psnr/test"] == pytest.approx(-20 * math.log10(0.2), abs=2)


@pytest.mark.parametrize("stage", ["train", "fit"])
def test_training_by_any_name_is_refused(stage):
    with pytest.raises(InputError, match="BatchAugmentation the Kornia form"):
        InputPurification(MatchedNoise(0.02), stages=[stage])


def test_training_is_refused_and_pointed_elsewhere():
    with pytest.raises(InputError, match="BatchAugmentation the Kornia form: RandomPixelDeflection"):
        InputPurification(Coarse(), stages=["train", "test"])
    with pytest.raises(InputError, match="defense is a Flatten"):
        InputPurification(nn.Flatten())
    with pytest.raises(InputError, match="votes=0"):
        InputPurification(Coarse(), 0)


def test_chains_are_applied_in_the_order_of_the_trainer(tmp_path):
    module, looks = Predicts(), Looks()
    callbacks = (InputPurification(Coarse(8)), InputPurification(Grain(), 3))
    trainer(tmp_path, looks, *callbacks).test(module, verbose=False)
    wanted = wanted_votes(module, looks.steps[0].seeds, 3, Coarse(8)(Images().image[:4]))
    torch.testing.assert_close(module.logits[0], wanted)


def test_two_callbacks_that_vote_purify_in_the_order_of_the_trainer(tmp_path):
    class Marks(Grain):
        def purify(self, image, seeds):
            order.append((self.amount, len(image)))
            return super().purify(image, seeds)

    order = []
    callbacks = (InputPurification(Marks(0.1), 2), InputPurification(Marks(0.2), 3))
    trainer(tmp_path, *callbacks, limit_test_batches=1).test(Predicts(), verbose=False)
    assert order == [(0.1, 8), (0.2, 24)]


class ByNet(Defense):
    """Darkens an image by what the net says of it."""

    is_random = True  # so that it may vote

    def __init__(self):
        super().__init__()
        self.map = MapOfNet()

    def purify(self, image, seeds):
        return image * self.map(image)[:, :1, None, None]


class MapOfNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = None

    @property
    def is_bound(self):
        return self.net is not None

    def bind(self, model):
        self.net = model

    def forward(self, image):
        return self.net(image).softmax(dim=1)


@pytest.mark.parametrize("votes", [1, 2])
@pytest.mark.parametrize("network", [None, "net"])
def test_an_activation_map_is_that_of_the_net_of_the_run(tmp_path, votes, network):
    class Lies(Predicts):
        def test_step(self, batch, batch_idx):
            self.logits.append((self if network is None else self.net)(batch["image"]))

    callback = InputPurification(ByNet(), votes, network=network, spec=ImageSpec(MEAN, STD))
    image = Images().image[:4]
    for seed in (1, 2):  # another net in another run
        module = Lies()
        module.net[-1].bias.data.normal_(generator=torch.Generator().manual_seed(seed))
        trainer(tmp_path, callback).test(module, feed(normalized(Images().image)), verbose=False)
        with torch.no_grad():
            probability = module.net(normalized(image)).softmax(dim=1)[:, :1, None, None]
            logits = module.net(normalized(image * probability))
        wanted = logits if votes == 1 else majority(torch.stack([logits] * votes))
        torch.testing.assert_close(module.logits[0], wanted, atol=1e-5, rtol=1e-4)
        assert not callback.defense.map.is_bound  # the user's object keeps no net
        assert callback._at_work is None


@pytest.mark.parametrize("votes", [1, 3])
def test_deflection_that_spares_what_the_net_looks_at(tmp_path, votes):
    torch.manual_seed(0)
    module, looks = ImageClassifier(SmallCNN(3, 4), num_classes=4, mean=MEAN, std=STD), Looks()
    defense = PixelDeflection(20, 3, RobustActivationMap(classes=2))
    inputs = []
    module.net.register_forward_hook(lambda net, args, logits: inputs.append(args[0]))
    callback = InputPurification(defense, votes)
    trainer(tmp_path, looks, callback).test(module, feed(torch.rand(16, 3, 16, 16)), verbose=False)
    seeds = derive(looks.steps[0].seeds, "purification")
    runs = [seeds] if votes == 1 else [derive(seeds, "vote", run) for run in range(votes)]
    bound = Purified(module.eval(), defense, votes).defense
    wanted = bound(looks.steps[0].original.repeat(votes, 1, 1, 1), seeds=torch.cat(runs))
    first, second = inputs[:2]  # the map's own pass, then the step's
    torch.testing.assert_close(second, normalized(wanted))
    assert not torch.equal(first, second)
    assert not defense.activation_map.is_bound


def test_a_checkpoint_names_the_defense_and_its_settings(tmp_path):
    chain = InputPurification(Sequence([Coarse(3), Grain(0.5)]), 10)
    settings = chain.state_dict()
    assert settings["defense"]["stages.1"] == {"class_path": "support.defenses.Grain", "amount": 0.5}
    assert settings["votes"] == 10
    torch.save(settings, tmp_path / "settings.pt")
    assert torch.load(tmp_path / "settings.pt", weights_only=True) == settings
    assert InputPurification(Coarse(3)).state_key != InputPurification(Coarse(4)).state_key


def test_images_of_unequal_size_and_eight_bits(tmp_path):
    class Keeps(UserModule):
        def test_step(self, batch, batch_idx):
            self.seen.append(batch[0])

    image = Images().image
    parts = [image[0, :, :6], image[1, :, :, :5]]
    lists = torch.utils.data.DataLoader([(parts, [0, 1])], batch_size=None, collate_fn=lambda batch: batch)
    module = Keeps()
    trainer(tmp_path, InputPurification(Coarse())).test(module, lists, verbose=False)
    for found, part in zip(module.seen[0], parts, strict=True):
        assert torch.equal(found, Coarse()(part[None])[0])

    eight_bits = torch.utils.data.DataLoader([((image * 255).to(torch.uint8), torch.zeros(16))], batch_size=None)
    with pytest.raises(InputError, match=r"InputPurification needs float images .* / 255"):
        trainer(tmp_path, InputPurification(Coarse())).test(Keeps(), eight_bits, verbose=False)


def test_a_defense_may_resize(tmp_path):
    class Twice(Defense):
        def purify(self, image, seeds):
            return F.interpolate(image, scale_factor=2)

    class Shapes(UserModule):
        def test_step(self, batch, batch_idx):
            self.seen.append(batch["image"])

    module = Shapes()
    (logged,) = trainer(tmp_path, InputPurification(Twice())).test(module, verbose=False)
    assert module.seen[0].shape == (4, 3, 16, 16)
    assert logged == {}


@pytest.mark.parametrize("votes", [1, 2])
def test_distortion_is_logged_and_a_picture_shown(tmp_path, votes):
    callback, looks = InputPurification(Grain(0.4), votes), Looks()
    run = trainer(tmp_path, looks, callback, logger=CSVLogger(tmp_path, name="", version=""))
    (logged,) = run.test(Predicts(), loader(16), verbose=False)
    image, seeds = Images().image, derive(looks.steps[0].seeds, "purification")
    after = Grain(0.4)(image, seeds=seeds if votes == 1 else derive(seeds, "vote", 0))
    error = (after - image).square().mean(dim=(1, 2, 3))
    assert logged["purification/psnr/test"] == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
    (picture,) = (tmp_path / "pictures" / "purification").glob("*.png")
    shown = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    for place, part in enumerate([image[0], after[0], (0.5 + 10 * (after - image)[0]).clamp(0, 1)]):
        wanted = (part * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        assert np.array_equal(shown[:, 10 * place : 10 * place + 8], wanted)


@pytest.mark.parametrize("votes", [1, 2])
@pytest.mark.parametrize("attacked", [False, True])
def test_the_map_of_the_top_class_and_the_robust_one_are_shown(tmp_path, votes, attacked):
    torch.manual_seed(0)
    module, looks = ImageClassifier(SmallCNN(3, 4), num_classes=4, mean=MEAN, std=STD), Looks(attacks=attacked)
    defense = Sequence([PixelDeflection(20, 3, RobustActivationMap(classes=3)), Grain()])
    run = trainer(tmp_path, looks, InputPurification(defense, votes), logger=CSVLogger(tmp_path, name="", version=""))
    image = torch.rand(4, 3, 16, 16)
    run.test(module, feed(image), verbose=False)
    shown = cv2.imread(str(tmp_path / "pictures" / "purification" / "test-map-0.png"))
    rows = [image[:1], (image[:1] + 0.1).clamp(0, 1)] if attacked else [image[:1]]
    assert shown.shape == (18 * len(rows) - 2, 18 * 3 - 2, 3)
    for number, row in enumerate(rows):
        maps = [RobustActivationMap(module.eval(), classes=count)(row)[0].numpy() for count in (1, 3)]
        assert np.abs(maps[0] - maps[1]).max() > 0.1
        plain = (row[0] * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)[..., ::-1]
        tints = [cv2.applyColorMap((found * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO) for found in maps]
        wanted = [plain, *((plain.astype(float) + tint) / 2 for tint in tints)]
        for place, part in enumerate(wanted):
            found = shown[18 * number : 18 * number + 16, 18 * place : 18 * place + 16].astype(float)
            # a level of the map on the edge of two may round either way
            assert (np.abs(found - part) > 1).mean() < 0.02


def test_without_a_logger_no_map_is_made_for_a_picture(tmp_path):
    module = ImageClassifier(SmallCNN(3, 4), num_classes=4, mean=MEAN, std=STD)
    runs = []
    module.net.register_forward_hook(lambda *_: runs.append(1))
    defense = PixelDeflection(20, 3, RobustActivationMap())
    trainer(tmp_path, InputPurification(defense)).test(module, feed(torch.rand(4, 3, 16, 16)), verbose=False)
    assert len(runs) == 2
    assert not (tmp_path / "pictures").exists()


def test_a_defense_is_named_by_class_path(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning-robust"])
    added = ["--trainer.callbacks+=InputPurification", "--trainer.callbacks.votes=3"]
    defense = ["--trainer.callbacks.defense=support.defenses.Grain", "--trainer.callbacks.defense.amount=0.25"]
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", "cifar10_resnet20", "--data.test", "none", *added, *defense, "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for line in ("callbacks.InputPurification", "votes: 3", "class_path: support.defenses.Grain", "amount: 0.25"):
        assert line in printed


def test_it_stands_beside_other_callbacks_of_a_fit(tmp_path):
    module = UserModule()
    flip = BatchAugmentation(nn.Identity())
    trainer(tmp_path, InputPurification(Grain(), 2, stages=["validate"]), flip).fit(module)
    assert module.calls["train"] == 4
