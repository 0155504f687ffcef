from __future__ import annotations

import json

import numpy as np
import pytest

from lightning_robust.cli import robustify_trainer
from lightning_robust.cli.shards import main
from lightning_robust.cli.shards_robustify import share_of
from lightning_robust.errors import InputError, ShardError
from lightning_robust.shards import Sample, open_index, pack


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def source(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    pack(
        [Sample(f"{number:03d}", image, number % 3) for number, image in enumerate(images)],
        tmp_path / "set",
        samples_per_shard=8,
    )
    return str(tmp_path / "set")


def test_options_reach_the_manifest(source, tmp_path, capsys):
    options = ["--psnr", "30", "--neighbors", "8", "--encode", "jpeg", "--quality", "80", "--subsampling", "420"]
    more = ["--metadata", "strip", "--measure-every", "2", "--lossless", "--ssim"]
    assert main(["robustify", source, str(tmp_path / "out"), *options, *more]) == 0
    out = capsys.readouterr().out
    assert "20 sharpened images in" in out
    assert "  psnr         mean 30" in out
    assert "worst" in out
    assert "; 10 images" in out  # four of each shard of eight, two of the last
    assert json.loads((tmp_path / "out" / "robustify.json").read_bytes())["parameters"] == {
        "alpha": None,
        "psnr": 30.0,
        "neighbors": 8,
        "encode": "jpeg",
        "quality": 80,
        "subsampling": "420",
        "lossless": True,
        "metadata": "strip",
        "ssim": True,
        "measure_every": 2,
    }
    assert len(open_index(tmp_path / "out")) == 20


def test_a_dry_run_measures_and_writes_nothing(source, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["robustify", source, str(tmp_path / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Would sharpen 20 images in 3 shards" in out
    assert "The first 16:" in out
    assert "  linf         mean" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_errors_are_one_sentence(source, tmp_path, capsys):
    for options, said in (
        (["--alpha", "-1"], "alpha=-1.0"),
        (["--share", "9/8"], "--share '9/8'"),
        (["--finish"], "no unfinished job"),
        (["--devices", "2", "--workers", "2"], "leave out --workers, --share and --finish"),
        (["--num-nodes", "2", "--share", "1/2"], "leave out --workers, --share and --finish"),
    ):
        assert main(["robustify", source, str(tmp_path / "out"), *options]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shares_of_a_launcher_and_the_end(source, tmp_path, capsys, monkeypatch):
    command = ["robustify", source, str(tmp_path / "out")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main(command) == 0
        assert f"Share {int(rank) + 1} of 2 is done" in capsys.readouterr().out
    assert main([*command, "--finish"]) == 0
    assert len(open_index(tmp_path / "out")) == 20


@pytest.mark.parametrize(
    ("options", "devices", "nodes"), [(["--devices", "3", "--num-nodes", "2"], 3, 2), (["--num-nodes", "4"], 1, 4)]
)
def test_the_processes_of_lightning(source, tmp_path, capsys, monkeypatch, options, devices, nodes):
    given = []

    class Trainer:
        local_rank, is_global_zero, strategy = 0, False, None

        def __init__(self, **settings):
            given.append(settings)

        def predict(self, module, **_):
            given.append(module)

    monkeypatch.setattr(robustify_trainer.pl, "Trainer", Trainer)
    monkeypatch.setenv("RANK", "5")  # of a launcher, which Lightning asks by itself
    monkeypatch.setenv("WORLD_SIZE", "6")
    more = ["--no-labels", "--image-keys", "png,jpg", "--alpha", "0.2"]
    assert main(["robustify", source, str(tmp_path / "out"), *options, *more]) == 0
    assert capsys.readouterr().out == ""
    settings, module = given
    assert (settings["strategy"], settings["devices"], settings["num_nodes"]) == ("ddp", devices, nodes)
    assert (module.source, module.destination) == (source, tmp_path / "out")
    assert (module.image_keys, module.label_key, module.sharpening.alpha) == (("png", "jpg"), None, 0.2)


def test_another_number_of_processes_than_was_started(source, tmp_path, capsys, monkeypatch):
    told = {"NTASKS": "4", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "x", "NTASKS_PER_NODE": "4"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main(["robustify", source, str(tmp_path / "out"), "--devices", "2"]) == 1
    assert "--devices and --num-nodes do not fit what was started. " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_finished_result_is_refused_before_processes_are_started(source, tmp_path, capsys, monkeypatch):
    def trainer(**_):
        raise AssertionError

    monkeypatch.setattr(robustify_trainer.pl, "Trainer", trainer)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "robustify.json").write_text("{}")
    command = ["robustify", source, str(tmp_path / "out"), "--devices", "2"]
    assert main(command) == 1
    assert "holds a finished set" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")  # it is the first process that says so
    with pytest.raises(AssertionError):
        main(command)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_a_machine_says_what_went_wrong(source, tmp_path, capsys, monkeypatch, rank):
    class Trainer:
        local_rank, strategy = rank, None

        def __init__(self, **_):
            pass

        def predict(self, *_, **__):
            raise ShardError("It is damaged.")

    monkeypatch.setattr(robustify_trainer.pl, "Trainer", Trainer)
    command = ["robustify", source, str(tmp_path / "out"), "--devices", "2"]
    if rank == 0:
        assert main(command) == 1
        assert capsys.readouterr().err == "lightning-robust shards robustify: It is damaged.\n"
    else:
        with pytest.raises(SystemExit, match="0"):
            main(command)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/8", {"RANK": "0", "WORLD_SIZE": "2"}, (3, 8)),
        (None, {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "9"}, (1, 2)),
        (None, {"SLURM_PROCID": "5", "SLURM_NTASKS": "9"}, (6, 9)),
        (None, {"RANK": "1"}, (1, 1)),
        (None, {}, (1, 1)),
    ],
)
def test_share(text, environment, expected):
    assert share_of(text, environment) == expected


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "-1/2"])
def test_no_share(text):
    with pytest.raises(InputError, match="expected K/N"):
        share_of(text, {})
