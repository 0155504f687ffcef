from __future__ import annotations

import json
import tarfile

import pytest

from lightning_robust.errors import InputError
from lightning_robust.shards import Sample, SampleReader, merge_shards, open_index, pack, split_shards
from lightning_robust.shards.merge import plan_merge


def read(*paths) -> list[tuple[str, bytes]]:
    """Members of shards in order, by Python's tarfile."""
    members = []
    for path in paths:
        with tarfile.open(path) as archive:
            members += [(info.name, archive.extractfile(info).read()) for info in archive]
    return members


@pytest.fixture
def sets(tmp_path, samples):
    """Two sets with the same classes and other keys."""
    others = [Sample(f"x{sample.key}", sample.image, sample.target) for sample in samples[:30]]
    first = pack(samples, tmp_path / "first", samples_per_shard=20, classes="abcde")
    second = pack(others, tmp_path / "second", name="train", samples_per_shard=20, classes="abcde")
    return first, second


def test_sets_follow_one_another(sets, tmp_path):
    merged = merge_shards(
        [tmp_path / "second", str(tmp_path / "first" / "*.tar")], tmp_path / "out", samples_per_shard=25
    )
    assert read(*merged.paths) == read(*sets[1].paths, *sets[0].paths)
    assert merged.counts.tolist() == [25, 25, 25, 19]
    assert merged.labels.tolist() == [*sets[1].labels.tolist(), *sets[0].labels.tolist()]
    assert merged.classes == ("a", "b", "c", "d", "e")
    assert open_index(tmp_path / "out").fingerprint == merged.fingerprint


def test_merge_undoes_split(sets, tmp_path):
    parts = split_shards(tmp_path / "first", tmp_path / "parts", {"a": 0.3, "b": 0.7})
    merged = merge_shards([list(parts["b"].paths), list(parts["a"].paths)], tmp_path / "out")
    assert sorted(read(*merged.paths)) == read(*sets[0].paths)


def test_one_set_gets_shards_of_another_size(sets, tmp_path):
    merged = merge_shards([tmp_path / "first"], tmp_path / "out", name="large", samples_per_shard=64)
    assert [path.rsplit("/", 1)[1] for path in merged.paths] == ["large-000000.tar"]
    assert read(*merged.paths) == read(*sets[0].paths)


def test_keys_that_occur_twice_are_refused_or_renamed(samples, sets, tmp_path):
    pack(samples[5:8], tmp_path / "third", classes="abcde")
    three = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    with pytest.raises(InputError, match=r"key '00005' is in the sets 'first' and 'third'.*--rename-keys"):
        merge_shards(three, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merged = merge_shards(three, tmp_path / "out", rename_keys=True)
    names = [name for name, _ in read(*merged.paths)]
    assert names[:2] == ["first/00000.cls", "first/00000.png"]
    assert names[128:130] == ["second/x00000.cls", "second/x00000.png"]
    assert names[-2:] == ["third/00007.cls", "third/00007.png"]
    with SampleReader(merged) as reader:
        assert reader.read([96]) == [samples[7].image]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["cars/train", "cars/val"], ["train", "val"]),
        (["cars/train", "cars", "val"], ["train", "cars", "val"]),
        (["a/v1.0", "b/v1.0"], ["v1_0-shard-1", "v1_0-shard-2"]),
    ],
)
def test_sets_are_named_by_their_folders(folders, names, samples, tmp_path):
    for folder in folders:
        pack(samples[:1], tmp_path / folder)
    plan = plan_merge([tmp_path / folder for folder in folders], tmp_path / "out", rename_keys=True)
    assert plan.names == names
    assert plan.prefixes == [f"{name}/" for name in names]


def test_sets_of_one_folder_are_named_by_their_shards(samples, tmp_path):
    pack(samples[:2], tmp_path / "cars", name="train")
    pack(samples[2:4], tmp_path / "cars", name="val")
    plan = plan_merge([str(tmp_path / "cars" / f"{name}-*.tar") for name in ("train", "val")], tmp_path / "out")
    assert plan.names == ["cars-train", "cars-val"]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("abcdf", r"sets 'first' and 'other' have other class names.*pack --classes"),
        (None, r"set 'other' has no class names, and 'first' has.*pack --classes"),
    ],
)
def test_other_class_names_are_refused(classes, said, samples, sets, tmp_path):
    pack(samples[:3], tmp_path / "other", classes=classes)
    with pytest.raises(InputError, match=said):
        merge_shards([tmp_path / "first", tmp_path / "other"], tmp_path / "out", rename_keys=True)


def test_sets_that_were_not_sharpened_alike_are_refused(sets, tmp_path):
    document = json.loads((tmp_path / "first" / "index.json").read_text())
    (tmp_path / "first" / "index.json").write_text(json.dumps({**document, "sharpened": {"alpha": 0.15}}))
    with pytest.raises(InputError, match="sets 'first' and 'second' were not sharpened alike"):
        merge_shards([tmp_path / "first", tmp_path / "second"], tmp_path / "out")


def test_places_and_names_that_are_refused(sets, tmp_path):
    both = [tmp_path / "first", tmp_path / "second"]
    with pytest.raises(InputError, match="holds a shard of the source"):
        merge_shards(both, tmp_path / "second")
    with pytest.raises(InputError, match=r"shard-000000\.tar' is in the sets 'first-shard-1' and 'first-shard-2'"):
        merge_shards([tmp_path / "first", tmp_path / "first"], tmp_path / "out", rename_keys=True)
    with pytest.raises(InputError, match="No sets were named"):
        merge_shards([], tmp_path / "out")
    merge_shards(both, tmp_path / "out")
    with pytest.raises(InputError, match="holds 1 shard named 'shard' already"):
        merge_shards(both, tmp_path / "out")
    assert len(merge_shards(both[:1], tmp_path / "out", overwrite=True)) == 64
