from __future__ import annotations

import gzip
import io
import tarfile

import cv2
import numpy as np
import pytest

from lightning_robust.errors import InputError
from lightning_robust.shards import SampleReader, decode_image, pack
from lightning_robust.shards.sources import ArraySamples, cifar_binary, csv_list, image_folder


@pytest.fixture
def photos(tmp_path, make_png):
    jpeg = bytes(cv2.imencode(".jpg", np.full((6, 6, 3), 90, np.uint8))[1])
    files = {
        "cat/b.png": make_png(1),
        "cat/a b.c.JPG": jpeg,
        "cat/deep/a.png": make_png(2),
        "ant/x.png": make_png(3),
        ".cache/y.png": make_png(4),
        "cat/.hidden.png": b"",
        "cat/Thumbs.db": b"",
        "labels.csv": b"",
    }
    for name, data in files.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "photos"


def test_image_folder_numbers_sorted_subfolders(photos, tmp_path):
    source = image_folder(photos)
    assert source.classes == ("ant", "cat")
    assert source.targets.tolist() == [0, 1, 1, 1]
    assert [sample.key for sample in source] == ["00000000-x", "00000001-a_b_c", "00000002-b", "00000003-a"]
    index = pack(source, tmp_path / "set", classes=source.classes)
    with SampleReader(index) as reader:
        packed = reader.read(range(4))
    names = ["ant/x.png", "cat/a b.c.JPG", "cat/b.png", "cat/deep/a.png"]
    assert packed == [(photos / name).read_bytes() for name in names]


def test_an_image_that_is_misnamed_gets_the_extension_of_its_bytes(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    pixels = np.zeros((4, 4, 3), np.uint8)
    for name, written in (("a.JPEG", ".jpg"), ("b.JPEG", ".png"), ("c.png", ".jpg"), ("d.jpg", ".jpg")):
        (tmp_path / "photos" / "cat" / name).write_bytes(bytes(cv2.imencode(written, pixels)[1]))
    assert [sample.extension for sample in image_folder(tmp_path / "photos")] == ["jpeg", "png", "jpg", "jpg"]
    assert len(pack(image_folder(tmp_path / "photos"), tmp_path / "set")) == 4


def test_image_folder_with_given_classes(photos):
    source = image_folder(photos, classes=["dog", "cat", "ant"])
    assert source.targets.tolist() == [2, 1, 1, 1]
    with pytest.raises(InputError, match=r"Subfolder 'cat' .* is not one of the 2 classes"):
        image_folder(photos, classes=["dog", "ant"])


def test_image_folder_errors(photos, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        image_folder(tmp_path / "none")
    with pytest.raises(InputError, match="no subfolders"):
        image_folder(photos / "cat" / "deep")
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty' holds no files"):
        image_folder(photos)
    (photos / "empty" / "z.tiff").write_bytes(b"x")
    with pytest.raises(InputError, match=r"z\.tiff' is not one of jpg, jpeg, png, webp \(1 such files of 5\)"):
        image_folder(photos)


def _write_csv(folder, text):
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "classes", "targets"),
    [
        ("path,label\ncat/b.png,3\nant/x.png,0\n", None, [3, 0]),
        ("\ufeffpath,label,author\ncat/b.png,wasp,me\nant/x.png,bee,you\n", ("bee", "wasp"), [1, 0]),
        ('label,path\n7,"cat/a b.c.JPG"\n', None, [7]),
    ],
)
def test_csv_list(photos, text, classes, targets):
    source = csv_list(_write_csv(photos, text))
    assert source.classes == classes
    assert source.targets.tolist() == targets


def test_csv_list_other_columns_and_classes(photos):
    path = _write_csv(photos, "file,name\ncat/b.png,b\nant/x.png,0\n")
    source = csv_list(path, image_column="file", label_column="name", classes=["a", "b"])
    assert source.targets.tolist() == [1, 0]
    assert source[0].image == (photos / "cat/b.png").read_bytes()
    assert source[-1].target == 0
    assert [sample.target for sample in source[:2]] == [1, 0]


@pytest.mark.parametrize(
    ("text", "classes", "said"),
    [
        ("path,class\nx,1\n", None, "no column 'label'; its columns are path, class.*--label-column"),
        ("", None, "no column 'path'; its columns are none"),
        ("path,label\n", None, "lists no images"),
        ("path,label\ncat/b.png,\n", None, "line 2: the path or the label is empty"),
        ("path,label\ncat/b.png\n", None, "line 2: the path or the label is empty"),
        ("path,label\ncat/b.png,0\nant/x.png,2\n", ["a", "b"], "line 3: the label '2' is neither a name nor a number"),
        ("path,label\ncat/b.png,dog\n", ["a", "b"], "the label 'dog' is neither a name nor a number of the 2"),
        ("path,label\ncat/none.png,0\n", None, r"none\.png' is missing \(1 of 1 files are\)"),
        ("path,label\nlist.csv,0\n", None, r"list\.csv' is not one of jpg"),
    ],
)
def test_csv_errors(photos, text, classes, said):
    with pytest.raises(InputError, match=said):
        csv_list(_write_csv(photos, text), classes=classes)


def test_csv_that_is_not_text(photos):
    (photos / "list.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(InputError, match="cannot be read as a CSV list"):
        csv_list(photos / "list.csv")


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 5, 1), (4, 6, 5, 3)])
def test_arrays(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    index = pack(ArraySamples(images, np.arange(4)), tmp_path)
    assert index.labels.tolist() == [0, 1, 2, 3]
    with SampleReader(index) as reader:
        decoded = np.stack([decode_image(data) for data in reader.read(range(4))])
    np.testing.assert_array_equal(decoded, np.broadcast_to(images.reshape(4, 6, 5, -1), (4, 6, 5, 3)))


@pytest.mark.parametrize(
    ("images", "targets", "said"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 0], "float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 0], r"\(2, 3, 4, 4\)"),
        (np.zeros((2, 4, 4), np.uint8), [0], "2 images and 1 targets"),
        (np.zeros((2, 4, 4), np.uint8), [0, 3], r"target of sample 1 is 3, expected 0 to 2 \(3 classes\)"),
        (np.zeros((2, 4, 4), np.uint8), [0, -1], "is -1"),
        (np.zeros((0, 4, 4), np.uint8), [], "expected one for each of 1 or more"),
    ],
)
def test_array_errors(images, targets, said):
    with pytest.raises(InputError, match=said):
        ArraySamples(images, targets, classes="abc")


def _records(count, seed, *, label_bytes=1, classes=10):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, (count, label_bytes), dtype=np.uint8)
    data = b"".join(
        row.tobytes() + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for row, image in zip(labels, images, strict=True)
    )
    return data, images, labels


@pytest.fixture
def cifar10(tmp_path):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files, images, labels = {"batches.meta.txt": "\n".join(names).encode() + b"\n\n"}, [], []
    for number in range(1, 6):
        files[f"data_batch_{number}.bin"], *made = _records(3, number)
        images.append(made[0])
        labels.append(made[1][:, 0])
    files["test_batch.bin"], test_images, test_labels = _records(4, 9)
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path, names, files, np.concatenate(images), np.concatenate(labels), test_images, test_labels[:, 0]


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar10_binary(cifar10, unpacked, tmp_path):
    path, names, files, images, labels, test_images, test_labels = cifar10
    if unpacked:
        path = tmp_path / "unpacked"
        (path / "cifar-10-batches-bin").mkdir(parents=True)
        for name, data in files.items():
            (path / "cifar-10-batches-bin" / name).write_bytes(data)
    train, test = cifar_binary(path, "train"), cifar_binary(path, "test")
    assert train.classes == tuple(names)
    np.testing.assert_array_equal(train.targets, labels)
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(test.targets, test_labels)
    np.testing.assert_array_equal(np.stack([sample.image for sample in test]), test_images)


@pytest.mark.parametrize(("labels", "column", "classes"), [("fine", 1, 100), ("coarse", 0, 20)])
def test_cifar100_binary(tmp_path, labels, column, classes):
    data, images, both = _records(6, 0, label_bytes=2, classes=20)
    (tmp_path / "train.bin").write_bytes(data)
    (tmp_path / f"{labels}_label_names.txt").write_text("\n".join(f"class_{n}" for n in range(classes)))
    source = cifar_binary(tmp_path, "train", labels=labels)
    np.testing.assert_array_equal(source.targets, both[:, column])
    np.testing.assert_array_equal(source.images, images)
    assert source.classes == tuple(f"class_{n}" for n in range(classes))


def test_cifar_errors(cifar10, tmp_path):
    _, _, files, *_ = cifar10
    folder = tmp_path / "cifar"
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds none of .*pickle"):
        cifar_binary(folder, "train")
    (folder / "data_batch_1.bin").write_bytes(files["data_batch_1.bin"])
    with pytest.raises(InputError, match=r"holds data_batch_1\.bin of .* needs data_batch_1\.bin, data_batch_2"):
        cifar_binary(folder, "train")
    (folder / "test_batch.bin").write_bytes(files["test_batch.bin"][:-1])
    with pytest.raises(InputError, match=r"test_batch\.bin has 12291 bytes, expected records of 3073"):
        cifar_binary(folder, "test")
    (folder / "test_batch.bin").write_bytes(b"\x0a" + files["test_batch.bin"][1:])
    with pytest.raises(InputError, match="the label 10, expected 0 to 9"):
        cifar_binary(folder, "test")
    with pytest.raises(InputError, match="expected 'train' or 'test'"):
        cifar_binary(folder, "val")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:200], lambda data: b"no archive", lambda data: gzip.compress(b"x")]
)
def test_cifar_archive_damaged(cifar10, damage):
    path = cifar10[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="cannot be read as a CIFAR archive"):
        cifar_binary(path, "train")


def test_cifar_archive_members_are_bounded_and_links_not_followed(tmp_path):
    path = tmp_path / "cifar.tar"
    info = tarfile.TarInfo("test_batch.bin")
    info.size = 200_000_001
    path.write_bytes(info.tobuf() + b"\0" * 10240)
    with pytest.raises(InputError, match="200000001 bytes, more than"):
        cifar_binary(path, "test")
    link = tarfile.TarInfo("test_batch.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path.write_bytes(link.tobuf() + b"\0" * 10240)
    with pytest.raises(InputError, match="holds none of"):
        cifar_binary(path, "test")
