from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from lightning_robust.cli.shards import main
from lightning_robust.shards import Sample, open_index, pack


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "photos" / ("cat", "dog", "eel")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return tmp_path / "photos"


def _tree(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_pack_index_info(photos, tmp_path, capsys):
    target = tmp_path / "set"
    assert main(["pack", str(photos), str(target), "--samples-per-shard", "5", "--shuffle-seed", "1"]) == 0
    assert "12 samples in 3 shards" in capsys.readouterr().out
    assert main(["info", str(target), "--checksums"]) == 0
    out = capsys.readouterr().out
    assert "shard-000002.tar          2 samples" in out
    assert "class    1 dog: 4" in out
    assert "SHA-256 of 3 of 3 shards" in out
    (target / "index.json").unlink()
    assert main(["index", f"{target}/*.tar"]) == 0
    assert (target / "index.json").is_file()
    assert sorted(open_index(target).labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_dry_runs_write_nothing(photos, tmp_path, capsys):
    before = _tree(tmp_path)
    assert main(["pack", str(photos), str(tmp_path / "set"), "--samples-per-shard", "5", "--dry-run"]) == 0
    assert "Would write 12 samples to 3 shards" in capsys.readouterr().out
    assert _tree(tmp_path) == before
    main(["pack", str(photos), str(tmp_path / "set")])
    for path in (tmp_path / "set").glob("*index*"):
        path.unlink()
    before = _tree(tmp_path)
    assert main(["index", str(tmp_path / "set"), "--dry-run"]) == 0
    assert main(["info", str(tmp_path / "set")]) == 0
    assert _tree(tmp_path) == before


def test_a_dry_run_finds_what_the_run_would(photos, tmp_path, capsys):
    main(["pack", str(photos), str(tmp_path / "set")])
    assert main(["pack", str(photos), str(tmp_path / "set"), "--dry-run"]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_csv_with_class_file(photos, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("eel\ndog\ncat\n")
    (photos / "list.csv").write_text("file,kind\ncat/0.png,cat\ndog/1.png,dog\n")
    options = ["--image-column", "file", "--label-column", "kind", "--classes", str(tmp_path / "classes.txt")]
    assert main(["pack", str(photos / "list.csv"), str(tmp_path / "set"), *options]) == 0
    index = open_index(tmp_path / "set")
    assert index.labels.tolist() == [2, 1]
    assert index.classes == ("eel", "dog", "cat")


def test_cifar_is_recognized(tmp_path):
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "test_batch.bin").write_bytes(b"\x07" + bytes(3072))
    assert main(["pack", str(tmp_path / "cifar"), str(tmp_path / "set"), "--split", "test"]) == 0
    assert open_index(tmp_path / "set").labels.tolist() == [7]


@pytest.mark.parametrize(
    "argv", [["info", "none-*.tar"], ["index", "pipe:cat a.tar"], ["pack", "none", "set"], ["index", "a.tar"]]
)
def test_errors_are_one_sentence_and_status_1(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"<html>")
    assert main(argv) == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.strip() and "Indexing" not in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"lightning-robust shards {argv[0]}: ")
    assert "Traceback" not in captured.err


def test_unlabeled_shards(tmp_path, capsys):
    image = bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1])
    (tmp_path / "a.png").write_bytes(image)
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "a.tar", "a.png"], check=True)
    assert main(["info", str(tmp_path / "a.tar")]) == 1
    assert "(shards: --no-labels; fit: --data.label_key null)" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "a.tar"), "--no-labels"]) == 0
    assert "1 sample in 1 shard," in capsys.readouterr().out


def test_info_tells_further_members_and_sharpening(tmp_path, capsys):
    blank = np.zeros((8, 8, 3), np.uint8)
    extra = {"seg.png": blank[..., 0], "boxes.json": {"boxes": []}}
    pack([Sample("a", blank, 0, extra=extra), Sample("b", blank, 1)], tmp_path / "set")
    assert main(["robustify", str(tmp_path / "set"), str(tmp_path / "sharp"), "--alpha", "0.2"]) == 0
    assert main(["pack", str(_flat(tmp_path)), str(tmp_path / "plain"), "--no-labels"]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert "further members: .boxes.json, .seg.png\n" in out
    assert "sharpened" not in out
    assert main(["info", str(tmp_path / "sharp")]) == 0
    assert "sharpened: alpha 0.2, neighbors 4, manifest robustify.json\n" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "plain"), "--no-labels"]) == 0
    assert "further" not in capsys.readouterr().out
    assert main(["info", str(tmp_path / "set"), str(tmp_path / "sharp")]) == 0
    assert "note: The folders of these shards were not sharpened alike" in capsys.readouterr().out


def _flat(home):
    (home / "flat").mkdir()
    cv2.imwrite(str(home / "flat" / "a.png"), np.zeros((8, 8, 3), np.uint8))
    return home / "flat"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pakc", "photos", "set"], "shards: error: there is no command 'pakc'. Did you mean 'pack'?"),
        (["pack", "photos", "set", "--overwrit3"], "shards pack: error: unrecognized arguments: --overwrit3. Did you"),
        (["pack", "photos", "set", "--sample-per-shrd=5"], "Did you mean '--samples-per-shard'?"),
        (["info", "set", "--cache-dri", "x"], "unrecognized arguments: --cache-dri x. Did you mean '--cache-dir'?"),
        (["split", "a", "b", "--fractions", "x=1", "--stratfy"], "Did you mean '--stratify'?"),
        (["pack", "photos", "set", "more"], "shards pack: error: unrecognized arguments: more."),
    ],
)
def test_a_wrong_name_is_status_2_with_a_suggestion(argv, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1]
    if "shards pack: " in said:
        assert "usage: lightning-robust shards pack " in err


@pytest.mark.parametrize("command", ["info", "verify", "merge", "robustify"])
def test_a_server_that_is_not_there_is_left_after_so_many_attempts(command, tmp_path, capsys):
    more = {"merge": ["--out", "x"], "robustify": [str(tmp_path / "x")]}.get(command, [])
    cache = str(tmp_path / "cache")
    url = "http://127.0.0.1:1/a.tar"
    assert main([command, url, *more, "--cache-dir", cache, "--attempts", "1"]) == 1
    assert "after 1 try in a row" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["pack"], ["index"], ["info"]])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert "lightning-robust shards" in out
    assert not command or f"example:\n  lightning-robust shards {command[0]} " in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom lightning_robust.cli.shards import main\n"
        "try:\n    main(['pack', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'cv2', 'webdataset', 'pytorch_lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
