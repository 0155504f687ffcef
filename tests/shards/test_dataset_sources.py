"""SVHN and TinyImageNet, from small files in their own formats."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from lightning_robust.errors import InputError
from lightning_robust.shards import SampleReader, decode_image, pack
from lightning_robust.shards.sources import svhn_mat, tiny_image_net

LABELS = np.array([10, 1, 9, 10, 5], np.uint8)


@pytest.fixture
def digits(tmp_path):
    """Files as published: X (32, 32, 3, N), y (N, 1)."""
    images = {}
    for number, split in enumerate(("train", "test", "extra")):
        rng = np.random.default_rng(number)
        images[split] = rng.integers(0, 256, (5 + number, 32, 32, 3), dtype=np.uint8)
        labels = np.resize(LABELS, (5 + number, 1))
        content = {"X": images[split].transpose(1, 2, 3, 0), "y": labels}
        savemat(tmp_path / f"{split}_32x32.mat", content, do_compression=split != "test")
    return tmp_path, images


@pytest.mark.parametrize(
    ("name", "split", "expected"), [("", "train", "train"), ("", "test", "test"), ("extra_32x32.mat", "train", "extra")]
)
def test_svhn(digits, tmp_path, name, split, expected):
    folder, images = digits
    source = svhn_mat(folder / name, split)
    assert source.classes == tuple("0123456789")
    assert source.targets.tolist() == (np.resize(LABELS, len(source)) % 10).tolist()
    index = pack(source, tmp_path / "set", classes=source.classes)
    with SampleReader(index) as reader:
        decoded = np.stack([decode_image(data) for data in reader.read(range(len(index)))])
    np.testing.assert_array_equal(decoded, images[expected])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": np.array([[0], [1]], np.uint8)}, "holds the label 0, expected 1 to 10"),
        ({"y": np.array([[1], [11]], np.uint8)}, "holds the label 11, expected 1 to 10"),
        ({"y": np.array([[1.5], [1]])}, r"holds the label 1\.5"),
        ({"y": np.array([[1]], np.uint8)}, r"y: uint8 \(1, 1\); expected X: uint8 \(32, 32, 3, N\)"),
        ({"y": np.array([["a"], ["b"]], object)}, "y is not an array of real numbers"),
        ({"X": np.zeros((32, 32, 3, 2))}, r"X: float64 \(32, 32, 3, 2\)"),
        ({"X": np.zeros((32, 32, 4, 2), np.uint8)}, r"X: uint8 \(32, 32, 4, 2\)"),
        ({"X": np.zeros((2, 2), np.uint8)}, r"X: uint8 \(2, 2\)"),
    ],
)
def test_svhn_errors(tmp_path, change, said):
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)} | change)
    with pytest.raises(InputError, match=said):
        svhn_mat(tmp_path)


def test_svhn_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"train_32x32\.mat' is missing"):
        svhn_mat(tmp_path)
    with pytest.raises(InputError, match="expected 'train' or 'test'"):
        svhn_mat(tmp_path, "extra")
    savemat(tmp_path / "test_32x32.mat", {"y": np.ones((2, 1), np.uint8)})
    with pytest.raises(InputError, match=r"holds X: float64 \(0,\)"):
        svhn_mat(tmp_path, "test")
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384)
    for content in (b"", b"<html>", bytes(600), hdf5):
        (tmp_path / "train_32x32.mat").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read as a MATLAB 5 file|holds X: float64"):
            svhn_mat(tmp_path)


WORDS = {"n03": "goldfish, Carassius auratus", "n01": "tailed frog", "n04": "bullfrog", "n99": "no class here"}


@pytest.fixture
def tiny(tmp_path):
    """Three classes; wnids.txt is not sorted, and words.txt names other things too and lacks n07."""
    (tmp_path / "wnids.txt").write_text("n03\nn07\nn01\n")
    (tmp_path / "words.txt").write_text("".join(f"{name}\t{text}\n" for name, text in WORDS.items()))
    rng = np.random.default_rng(0)
    images = [
        (f"train/{name}/images/{name}_{number}.JPEG", name) for name in ("n03", "n07", "n01") for number in (0, 1)
    ]
    images += [(f"val/images/val_{number}.JPEG", name) for number, name in enumerate(("n07", "n07", "n01"))]
    for path, _ in images:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / path), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    lines = [f"{path.rsplit('/', 1)[1]}\t{name}\t0\t32\t44\t62\n" for path, name in images if path.startswith("val")]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "train" / "n03" / "n03_boxes.txt").write_text("n03_0.JPEG\t0\t0\t7\t7\n")
    return tmp_path


def test_tiny_image_net(tiny, tmp_path):
    train, test = tiny_image_net(tiny), tiny_image_net(tiny, "test")
    assert train.classes == test.classes == ("tailed frog", "goldfish, Carassius auratus", "n07")
    assert [file.name for file in train.files] == [f"{name}_{k}.JPEG" for name in ("n01", "n03", "n07") for k in (0, 1)]
    assert train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert [file.name for file in test.files] == ["val_0.JPEG", "val_1.JPEG", "val_2.JPEG"]
    assert test.targets.tolist() == [2, 2, 0]
    index = pack(test, tmp_path / "set", classes=test.classes)
    with SampleReader(index) as reader:
        assert reader.read([1]) == [(tiny / "val/images/val_1.JPEG").read_bytes()]


def test_tiny_image_net_errors(tiny):
    annotations = tiny / "val" / "val_annotations.txt"
    good = annotations.read_text()
    for text in ("val_0.JPEG\tn99\t0", "../secret.JPEG\tn01\t0", "/etc/secret.JPEG\tn01", "val_0.JPEG", ""):
        annotations.write_text(good + text + "\n")
        with pytest.raises(InputError, match=r"val_annotations\.txt', line 4: found .* one of the 3 ids"):
            tiny_image_net(tiny, "test")
    annotations.write_text(good + "val_9.JPEG\tn01\n")
    with pytest.raises(InputError, match=r"val_9\.JPEG' is missing"):
        tiny_image_net(tiny, "test")
    with pytest.raises(InputError, match="labeled test images are those of val"):
        tiny_image_net(tiny, "val")
    for file in (tiny / "train" / "n07" / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"images' holds no \.JPEG files; wnids\.txt lists n07"):
        tiny_image_net(tiny)
    with pytest.raises(InputError, match=r"wnids\.txt' cannot be read"):
        tiny_image_net(tiny / "train")
