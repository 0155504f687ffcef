"""The demo on a few images of the user, and where it takes its data from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.web import web_server

from lightning_robust.cli import demo_data
from lightning_robust.cli.demo_report import demo_table
from lightning_robust.cli.demo_train import PLAIN, ROBUST, DemoResult, DemoSettings, _data
from lightning_robust.cli.main import main
from lightning_robust.errors import InputError
from lightning_robust.evaluation import Record, load_records
from lightning_robust.shards import open_index, pack
from lightning_robust.shards.sources import image_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _images(folder: Path, per_class: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            image = rng.integers(0, 100, (24, 20, 3), dtype=np.uint8) + np.uint8(120 * label)
            cv2.imwrite(str(folder / name / f"{number}.png"), image)
    return folder


def test_the_demo_runs_on_an_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    status = main(
        ["demo", "--data", str(_images(tmp_path / "mine", 80)), "--size", "16", "--epochs", "1", "--out", str(out)]
    )
    assert status == 0
    printed = capsys.readouterr().out
    assert "Smoke demo" in printed
    rows = ["clean", "FGSM, eps 2/255", "FGSM, eps 8/255", "PGD-20, eps 2/255", "PGD-20, eps 8/255", "Gaussian noise",
            "Gaussian blur", "seconds per epoch"]  # fmt: skip
    table = (out / "demo.md").read_text()
    assert table in printed
    assert all(f"| {row}" in table for row in rows)
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    records = load_records(out / "demo.json")
    assert list(records) == [PLAIN, ROBUST]
    assert [one.ids for one in records[PLAIN]] == [one.ids for one in records[ROBUST]]


def test_digits_are_packed_once_and_split_without_overlap() -> None:
    shards = demo_data.mnist_shards()
    folder = demo_data.mnist_folder()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    assert demo_data.mnist_shards() == shards
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")} == times
    indexes = {name: open_index(str(folder / name)) for name in demo_data.MNIST_SIZES}
    assert {name: len(index) for name, index in indexes.items()} == demo_data.MNIST_SIZES
    counts = sum(np.bincount(index.labels, minlength=10) for index in indexes.values() if index.labels is not None)
    assert counts.tolist() == [500] * 10  # type: ignore[attr-defined]


def test_an_image_folder_is_split_and_packed_again_only_when_it_changes(tmp_path: Path) -> None:
    folder = _images(tmp_path / "mine")
    shards = demo_data.user_shards(str(folder), 16)
    assert demo_data.user_shards(str(folder), 16) == shards
    train, test = open_index(shards.train), open_index(shards.test)
    assert len(train) + len(test) == 40
    assert 2 <= len(test) <= 16
    assert shards.num_classes == 2
    (folder / "dark" / "0.png").unlink()
    changed = demo_data.user_shards(str(folder), 16)
    assert changed.train != shards.train
    assert len(open_index(changed.train)) + len(open_index(changed.test)) == 39


def test_shards_with_a_split_are_read_where_they_are(tmp_path: Path) -> None:
    source = image_folder(_images(tmp_path / "mine"))
    for name in ("train", "test"):
        pack(source, tmp_path / "set" / name, classes=source.classes)
    shards = demo_data.user_shards(str(tmp_path / "set"), 16)
    assert (shards.train, shards.test) == (str(tmp_path / "set" / "train"), str(tmp_path / "set" / "test"))
    assert not (tmp_path / "cache").exists()


def test_shards_without_a_split_keep_images_and_labels(tmp_path: Path) -> None:
    source = image_folder(_images(tmp_path / "mine"))
    whole = pack(source, tmp_path / "set", classes=source.classes)
    shards = demo_data.user_shards(str(tmp_path / "set"), 16)
    parts = [open_index(part) for part in (shards.train, shards.test)]
    assert sum(map(len, parts)) == len(whole)
    assert whole.labels is not None
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    assert np.bincount(labels).tolist() == np.bincount(whole.labels).tolist()


def test_shards_at_a_url_are_packed_once_and_again_when_they_change(tmp_path: Path) -> None:
    source = image_folder(_images(tmp_path / "mine"))
    whole = pack(source, tmp_path / "set", classes=source.classes)
    with web_server() as web:
        url = web.add_folder(tmp_path / "set", "set")
        named = f"{url}shard-000000.tar?key=secret"
        shards = demo_data.user_shards(named, 16)
        assert demo_data.user_shards(named, 16) == shards
        assert shards.name == f"{url}shard-000000.tar"
        assert shards.num_classes == 2
        assert sum(len(open_index(part)) for part in (shards.train, shards.test)) == len(whole) == 40

        (tmp_path / "mine" / "dark" / "0.png").unlink()
        pack(image_folder(tmp_path / "mine"), tmp_path / "set", classes=source.classes, overwrite=True)
        web.files.clear()
        web.add_folder(tmp_path / "set", "set")
        changed = demo_data.user_shards(named, 16)
    assert changed.train != shards.train
    assert sum(len(open_index(part)) for part in (changed.train, changed.test)) == 39


def test_an_image_folder_with_a_split_keeps_it(tmp_path: Path) -> None:
    _images(tmp_path / "mine" / "train", 5)
    _images(tmp_path / "mine" / "test", 3)
    shards = demo_data.user_shards(str(tmp_path / "mine"), 16)
    assert (len(open_index(shards.train)), len(open_index(shards.test))) == (10, 6)


@pytest.mark.parametrize("missing", ["mlxtend", "matplotlib"])
def test_a_missing_package_is_named_with_the_command(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert missing in error
    assert 'pip install "lightning-robust[demo]"' in error


def test_own_images_need_no_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlxtend" else find(name))
    (tmp_path / "empty").mkdir()
    assert main(["demo", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "mlxtend" not in error
    assert "subfolder" in error  # it got as far as the images


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="subfolder"):
        demo_data.user_shards(str(tmp_path / "empty"), 16)


def test_the_table_says_where_nets_cannot_be_told_apart() -> None:
    ids = tuple(range(100))

    def result(correct: int, seconds: float) -> DemoResult:
        return DemoResult([Record("clean", "clean", ids, tuple(i < correct for i in ids), {})], seconds)

    table = demo_table({PLAIN: result(90, 2.0), ROBUST: result(88, 5.0)})
    assert "90.0 [" in table
    assert "-2.0 [" in table
    assert "not distinguishable" in table
    assert "2.5 times" in table
    assert "not distinguishable" not in demo_table({PLAIN: result(90, 2.0), ROBUST: result(50, 5.0)})


def test_few_images_still_make_some_steps(tmp_path: Path) -> None:
    _images(tmp_path / "few", 20)
    shards = demo_data.user_shards(str(tmp_path / "few"), 8)
    data = _data(shards, DemoSettings())
    data.setup("fit")
    assert len(data.train_dataloader()) >= 8
