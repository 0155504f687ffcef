from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.errors import InputError
from lightning_robust.evaluation.intervals import wilson
from lightning_robust.evaluation.records import Record, load_records, save_records, worst_case


def record(bits, column="clean", ids=None, **settings):
    bits = tuple(bit == "1" for bit in bits)
    return Record(column, "attack", tuple(ids or range(len(bits))), bits, settings, seed=3)


def test_accuracy_is_the_share_with_its_interval():
    assert record("1101").accuracy() == wilson(3, 4)


def test_worst_case_is_right_where_all_are():
    both = worst_case([record("1101", "a", eps=0.1), record("1011", "b", eps=0.2)], "a and b")
    assert both.correct == (True, False, False, True)
    assert both.settings == {"worst_of": [{"column": "a", "eps": 0.1}, {"column": "b", "eps": 0.2}]}


def test_comparison_pairs_by_id():
    test = record("1100").compare(record("1010"))
    assert (test.only_first, test.only_second) == (1, 1)
    with pytest.raises(InputError, match="4 samples and 'clean' 4, of which 3 are the same"):
        record("1100").compare(record("1010", ids=[0, 1, 2, 9]))


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(-(2**62), 2**62))
def test_plain_form_returns_the_record(bits, first):
    made = Record("c", "clean", tuple(range(first, first + len(bits))), tuple(bits), {"a": [1, "b", None]}, seed=2)
    assert Record.from_plain(json.loads(json.dumps(made.to_plain()))) == made


def test_file_returns_the_records_and_names_the_versions(tmp_path):
    models = {"plain": [record("110"), record("100", "fgsm", eps=0.1)], "other": [record("111")]}
    save_records(tmp_path / "records.json", models)
    assert load_records(tmp_path / "records.json") == models
    assert "torch" in json.loads((tmp_path / "records.json").read_text())["versions"]
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "does not hold"), ("not json", "does not hold"), ('{"format": 9, "models": {}}', "has format 9")],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_records(tmp_path / "other.json")


def test_ids_must_ascend_and_match():
    with pytest.raises(InputError, match="do not ascend"):
        record("11", ids=[4, 4])
    with pytest.raises(InputError, match="3 ids and 2 results"):
        record("11", ids=[4, 5, 6])
    with pytest.raises(InputError, match="no records"):
        worst_case([], "none")
