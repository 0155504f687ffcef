"""Results on float32 and 8-bit images do not depend on torch's default dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_robust import seeds
from lightning_robust.attacks import fgsm, pgd
from lightning_robust.augmentations import RandomLaplacianSharpening
from lightning_robust.corruptions import band_noise, contrast, gaussian_blur, gaussian_noise
from lightning_robust.datamodules.transfer import unit_float
from lightning_robust.errors import UnsupportedError
from lightning_robust.evaluation.rounding import receive
from lightning_robust.functional import (
    _sharpening_planes,
    alpha_for_psnr,
    frequency_pool2d,
    jacobian_frequency_bias,
    laplacian_sharpen,
    texture_intensity,
    undo_sharpening,
)
from lightning_robust.images import Normalization

IMAGE = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
BYTES = (IMAGE * 255).to(torch.uint8)
TARGET = torch.tensor([0, 1, 2])
NET = nn.Sequential(nn.Flatten(), nn.Linear(360, 3, dtype=torch.float32))


def _drawn_sharpening() -> Tensor:
    torch.manual_seed(0)
    augmented: Tensor = RandomLaplacianSharpening(p=1.0)(IMAGE)
    return augmented


CALLS: dict[str, Callable[[], Tensor]] = {
    "sharpen": lambda: laplacian_sharpen(IMAGE, 0.15),
    "sharpen by several strengths": lambda: laplacian_sharpen(IMAGE, [0.1, 0.2, 0.3]),
    "sharpen bytes": lambda: laplacian_sharpen(BYTES, 0.15),
    "sharpen continuously": lambda: laplacian_sharpen(IMAGE, 0.15, levels=None),
    "sharpen on few levels": lambda: laplacian_sharpen(IMAGE, 0.15, levels=16),
    "sharpen channels last": lambda: laplacian_sharpen(IMAGE.to(memory_format=torch.channels_last), 0.15),
    "alpha_for_psnr": lambda: alpha_for_psnr(BYTES, 30.0),
    "texture_intensity": lambda: texture_intensity(BYTES),
    "undo_sharpening": lambda: undo_sharpening(BYTES, 0.15),
    "RandomLaplacianSharpening": _drawn_sharpening,
    "frequency_pool2d": lambda: frequency_pool2d(IMAGE, (5, 5)),
    "jacobian_frequency_bias": lambda: jacobian_frequency_bias(IMAGE),
    "jacobian_frequency_bias, ratio": lambda: jacobian_frequency_bias(IMAGE, variant="ratio"),
    "fgsm": lambda: fgsm(NET, IMAGE, TARGET, eps=8 / 255, random_start=True),
    "pgd": lambda: pgd(NET, IMAGE, TARGET, eps=8 / 255, steps=2),
    "pgd, l2": lambda: pgd(NET, IMAGE, TARGET, eps=0.5, norm="l2", steps=2, loss="margin"),
    "gaussian_noise": lambda: gaussian_noise(IMAGE, std=0.1),
    "gaussian_blur": lambda: gaussian_blur(IMAGE, sigma=1.0),
    "contrast": lambda: contrast(IMAGE, factor=0.5),
    "band_noise": lambda: band_noise(IMAGE, band="high", rmse=0.05),
    "normal": lambda: seeds.normal(TARGET, (4,), "stream"),
    "unit_float": lambda: unit_float(BYTES, torch.device("cpu")),
    "receive": lambda: receive(IMAGE, BYTES.float() / 255, eps=0.5, norm="l2"),
    "normalize": lambda: Normalization((0.5,) * 3, (0.25,) * 3).normalize(IMAGE),
}


@pytest.fixture(params=[torch.float64, torch.float16, torch.bfloat16], ids=str)
def use_default_dtype(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    before = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(request.param)
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", CALLS)
def test_the_default_dtype_changes_nothing(name: str, use_default_dtype: Callable[[], None]) -> None:
    wanted = CALLS[name]()
    use_default_dtype()
    found = CALLS[name]()
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("LUT", lambda: _sharpening_planes.from_bytes(BYTES)),
        ("convertScaleAbs", lambda: _sharpening_planes.to_bytes(IMAGE)),
        ("filter2D", lambda: laplacian_sharpen(BYTES, 0.15)),
    ],
)
def test_a_result_that_opencv_puts_elsewhere_is_an_error(
    name: str, call: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(_sharpening_planes.cv2, name)

    def elsewhere(*args: object, dst: object, **options: object) -> object:
        return original(*args, **options)

    monkeypatch.setattr(_sharpening_planes.cv2, name, elsewhere)
    with pytest.raises(UnsupportedError, match="returned another"):
        call()
