"""What PreemptiveSharpening hands to the step, logs and shows."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from support.modules import Images, UserModule, loader, trainer
from torch import Tensor

from lightning_robust.callbacks import PreemptiveSharpening
from lightning_robust.errors import InputError
from lightning_robust.functional import laplacian_sharpen
from lightning_robust.images import ImageSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized(image: Tensor) -> Tensor:
    return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Normalized(UserModule):
    def test_dataloader(self):
        data = Images()
        data.image = normalized(data.image)
        return torch.utils.data.DataLoader(data, batch_size=4)


def test_normalized_batches_are_published_in_image_space(tmp_path):
    module = Normalized()
    trainer(tmp_path, PreemptiveSharpening(0.15, spec=ImageSpec(MEAN, STD))).test(module, verbose=False)
    wanted = normalized(laplacian_sharpen(Images().image[:4], 0.15))
    torch.testing.assert_close(module.seen[0], wanted, atol=0.02, rtol=0)  # one level of 8 bits, normalized
    assert (module.seen[0] - wanted).abs().mean() < 1e-4


def test_undeclared_normalization_is_refused_with_the_argument_to_paste(tmp_path):
    with pytest.raises(InputError, match=r"spec=ImageSpec\(mean=\(0.485, 0.456, 0.406\), std=\(0.229"):
        trainer(tmp_path, PreemptiveSharpening()).test(Normalized(), verbose=False)


@pytest.mark.parametrize("scale", [255.0, 40.0])
def test_other_ranges_are_refused(tmp_path, scale):
    class Scaled(UserModule):
        def test_dataloader(self):
            data = Images()
            data.image = data.image * scale
            return torch.utils.data.DataLoader(data, batch_size=4)

    with pytest.raises(InputError, match="divide them by 255"):
        trainer(tmp_path, PreemptiveSharpening()).test(Scaled(), verbose=False)


def test_uint8_batches_and_lists_of_unequal_images(tmp_path):
    class Bytes(UserModule):
        def test_step(self, batch, batch_idx):
            self.seen.append(batch[0])

    image = (Images().image * 255).round().to(torch.uint8)
    module = Bytes()
    feed = torch.utils.data.DataLoader([(image, torch.zeros(16))], batch_size=None)
    trainer(tmp_path, PreemptiveSharpening(0.15)).test(module, feed, verbose=False)
    assert torch.equal(module.seen[0], laplacian_sharpen(image, 0.15))

    parts = [image[0, :, :6].float() / 255, image[1, :, :, :5].float() / 255]
    feed = torch.utils.data.DataLoader([(parts, [0, 1])], batch_size=None, collate_fn=lambda batch: batch)
    trainer(tmp_path, PreemptiveSharpening(0.15)).test(module, feed, verbose=False)
    for found, part in zip(module.seen[1], parts, strict=True):
        torch.testing.assert_close(found, laplacian_sharpen(part[None], 0.15)[0])


def test_batches_of_any_type_come_back_in_it(tmp_path):
    class Pair(NamedTuple):
        picture: Tensor
        label: Tensor

    class Takes(UserModule):
        def test_step(self, batch, batch_idx):
            assert isinstance(batch, Pair)
            self.seen.append(batch.picture)

    batch = Pair(Images().image, Images().target)
    feed = torch.utils.data.DataLoader([batch], batch_size=None, collate_fn=lambda batch: batch)
    module = Takes()
    spec = ImageSpec(image_key="picture")
    trainer(tmp_path, PreemptiveSharpening(spec=spec)).test(module, feed, verbose=False)
    assert torch.equal(module.seen[0], laplacian_sharpen(batch.picture, 0.15))


def test_a_batch_without_an_image(tmp_path):
    feed = torch.utils.data.DataLoader([{"text": torch.zeros(2, 3)}], batch_size=None)
    with pytest.raises(InputError, match="image_key"):
        trainer(tmp_path, PreemptiveSharpening()).test(UserModule(), feed, verbose=False)


def test_adaptive_strength_reaches_the_wanted_distortion(tmp_path):
    run = trainer(tmp_path, PreemptiveSharpening(psnr=28.0))
    (found,) = run.test(UserModule(), loader(16), verbose=False)
    assert found["sharpening/psnr/test"] == pytest.approx(28.0, abs=0.05)
    assert 0 < found["sharpening/alpha/test"] < 1


def test_shown_as_png_where_the_logger_takes_no_pictures(tmp_path):
    run = trainer(tmp_path, PreemptiveSharpening(0.3), logger=CSVLogger(tmp_path, name="", version=""))
    run.test(UserModule(), verbose=False)
    (picture,) = (tmp_path / "pictures" / "sharpening").glob("*.png")
    shown = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    wanted = (laplacian_sharpen(Images().image[:1], 0.3)[0] * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.array_equal(shown[:, -8:], wanted)


def test_shown_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, PreemptiveSharpening(), logger=logger).test(UserModule(), verbose=False)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["images"] == ["sharpening/test"]
    assert "sharpening/psnr/test" in events.Tags()["scalars"]


def test_without_a_logger_no_file_is_written(tmp_path):
    trainer(tmp_path, PreemptiveSharpening()).test(UserModule(), verbose=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"neighbors": 5}, {"psnr": -3.0}])
def test_nonsense_is_refused_at_once(wrong):
    with pytest.raises(InputError, match="strength of at least 0"):
        PreemptiveSharpening(**wrong)


def test_unknown_stage():
    with pytest.raises(InputError, match="stages"):
        PreemptiveSharpening(stages=["val"])


def test_in_training_one_batch_in_log_every_n_steps_is_measured(tmp_path):
    image = Images(12).image
    run = trainer(tmp_path, PreemptiveSharpening(0.3, stages=["train"]), log_every_n_steps=2)
    run.fit(UserModule(), loader(4, 12))
    error = (laplacian_sharpen(image, 0.3) - image).square().flatten(1).mean(1)
    psnr = -10 * error.log10()
    measured = torch.cat([psnr[:4], psnr[8:]]).mean()  # the first and the third batch
    assert run.callback_metrics["sharpening/psnr/train"] == pytest.approx(measured.item(), rel=1e-5)
