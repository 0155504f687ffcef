from __future__ import annotations

import pytest

from lightning_robust.errors import InputError
from lightning_robust.evaluation.records import Record
from lightning_robust.evaluation.table import accuracy_table, difference_table


def record(column, right, count=1000, first=0):
    bits = tuple(first <= i < first + right for i in range(count))
    return Record(column, "clean", tuple(range(count)), bits, {})


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().split("\n")]


def test_accuracy_table_shows_percent_interval_and_count():
    rows = cells(accuracy_table({"plain": [record("clean", 500)], "ours": [record("clean", 0), record("noise", 1000)]}))
    assert rows[0] == ["model", "n", "clean", "noise"]
    assert rows[1] == ["---"] * 4
    assert rows[2] == ["plain", "1000", "50.0 [46.9, 53.1]", ""]
    assert rows[3] == ["ours", "1000", "0.0 [0.0, 0.4]", "100.0 [99.6, 100.0]"]


def test_difference_table_pairs_adjusts_and_says_when_nothing_is_seen():
    models = {
        "plain": [record("clean", 500), record("noise", 500)],
        "better": [record("clean", 540), record("noise", 503), record("extra", 1)],
    }
    rows = cells(difference_table(models, "plain"))
    assert rows[0] == ["difference from plain", "clean", "noise"]
    assert len(rows) == 3
    assert rows[2][1].startswith("+4.0 [+2.")
    assert rows[2][1].endswith("p < 0.001")
    assert rows[2][2].startswith("+0.3 [")
    assert rows[2][2].endswith("not distinguishable")


def test_difference_table_adjusts_for_the_number_of_comparisons():
    # 7 samples gained and none lost: exact p = 0.016
    alone = {"plain": [record("clean", 500)], "a": [record("clean", 507)]}
    assert "p = 0.016" in difference_table(alone, "plain")
    many = alone | {name: [record("clean", 500)] for name in "bcdefgh"}
    assert "p = " not in difference_table(many, "plain")


def test_missing_baseline_is_named():
    with pytest.raises(InputError, match=r"no model 'base'.*plain"):
        difference_table({"plain": [record("clean", 1)]}, "base")
