from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from lightning_robust.defenses import PatchBank
from lightning_robust.errors import InputError


def images(count: int = 4, channels: int = 3, side: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def test_every_patch_is_a_window_of_its_image_and_all_places_occur():
    image = images(2, side=7)
    bank = PatchBank.from_images(image, patch=5, per_image=200)
    assert bank.patches.shape == (400, 3, 5, 5)
    windows = image.unfold(2, 5, 1).unfold(3, 5, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    for number, own in enumerate(windows):
        equal = (bank.patches[number * 200 : (number + 1) * 200, None] == own).flatten(2).all(2)
        assert equal.any(1).all()
        assert equal.any(0).all()


def test_batches_floats_and_single_images_give_the_same_bank():
    image = images()
    wanted = PatchBank.from_images(image).patches
    for form in (list(image), [image[:1], image[1:]], (one.float() / 255 for one in image)):
        assert torch.equal(PatchBank.from_images(form).patches, wanted)
    assert not torch.equal(PatchBank.from_images(image, seed=1).patches, wanted)


def test_images_of_unequal_size_are_taken():
    bank = PatchBank.from_images([images(1, side=6)[0], images(1, side=12)], per_image=3)
    assert len(bank.patches) == 6


def test_a_saved_bank_comes_back(tmp_path):
    bank = PatchBank.from_images(images())
    path = tmp_path / "bank of patches"
    bank.save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(PatchBank.load(path).patches, bank.patches)
    assert torch.equal(PatchBank.load(str(path)).patches, bank.patches)


def test_no_code_in_a_file_is_run(tmp_path):
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (ran.touch, ())

    np.savez(tmp_path / "bank.npz", patches=np.array([Harm()], dtype=object))
    (tmp_path / "bank.pkl").write_bytes(pickle.dumps(Harm()))
    ran.unlink(missing_ok=True)
    for name in ("bank.npz", "bank.pkl"):
        with pytest.raises(InputError, match="holds no patch bank"):
            PatchBank.load(tmp_path / name)
    assert not ran.exists()


def test_what_is_no_bank_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no patch bank .* write one with PatchBank.from_images"):
        PatchBank.load(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(InputError, match="holds no patch bank"):
        PatchBank.load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match="holds no patch bank"):
        PatchBank.load(tmp_path / "array.npy")
    np.savez(tmp_path / "flat.npz", patches=np.zeros((4, 75), np.uint8))
    with pytest.raises(InputError, match=r"uint8 tensor of shape \(4, 75\): give uint8 of shape \(N, C, P, P\)"):
        PatchBank.load(tmp_path / "flat.npz")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "was given no image"),
        ([images(1, 3)[0], images(1, 1)[0]], r"images of \[1, 3\] channels"),
        ([images(1, side=4)], "Image 0 is 4 x 4: give images of at least 5 x 5"),
        ([torch.full((3, 9, 9), 2.0)], "before normalization"),
        ([torch.full((3, 9, 9), torch.nan)], "before normalization"),
        ([(images(), torch.zeros(4))], "is tuple: give tensors"),
        ([torch.zeros(9, 9, dtype=torch.uint8)], r"\(9, 9\): give tensors"),
    ],
)
def test_images_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        PatchBank.from_images(given)
