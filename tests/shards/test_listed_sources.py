"""JSONL and Parquet lists name what a CSV list of the same rows names."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from lightning_robust.errors import InputError
from lightning_robust.shards.sources import csv_list, jsonl_list, parquet_list

ROWS = {
    "numbers": [("a.png", 3), ("sub/b.png", 0), ("sub/c.png", 3)],
    "names": [("a.png", "wasp"), ("sub/b.png", "bee"), ("sub/c.png", "wasp")],
}


@pytest.fixture
def home(tmp_path, make_png):
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        (tmp_path / name).write_bytes(make_png(number))
    return tmp_path


def _write_csv(path, rows, columns=("path", "label")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return path


def _write_jsonl(path, rows, columns=("path", "label")):
    lines = [json.dumps({"id": 7, **dict(zip(columns, row, strict=True))}) for row in rows]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_parquet(path, rows, columns=("path", "label")):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra lightning-robust[parquet])")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        arrow.table({column: list(values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)}),
        path,
    )
    return path


LISTS = [
    pytest.param(_write_jsonl, jsonl_list, id="jsonl"),
    pytest.param(_write_parquet, parquet_list, id="parquet"),
]


@pytest.mark.parametrize(("write", "read"), LISTS)
@pytest.mark.parametrize("labels", ROWS)
def test_a_list_reads_as_the_csv_of_its_rows(write, read, labels, home):
    expected = csv_list(_write_csv(home / "list.csv", ROWS[labels]))
    source = read(write(home / "list", ROWS[labels]))
    assert source.classes == expected.classes
    assert list(source) == list(expected)


@pytest.mark.parametrize(("write", "read"), LISTS)
def test_other_columns_and_classes(write, read, home):
    path = write(home / "list", [("a.png", "b"), ("sub/b.png", "0")], columns=("file", "kind"))
    source = read(path, image_column="file", label_column="kind", classes=["a", "b"])
    assert source.targets.tolist() == [1, 0]
    assert source.classes == ("a", "b")
    with pytest.raises(InputError, match=r"has no column 'path'; its columns are (id, )?file, kind.*--image-column"):
        read(path)


@pytest.mark.parametrize(("write", "read"), LISTS)
@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("a.png", None), "the path or the label is empty"),
        (("", 1), "the path or the label is empty"),
        (("a.png", 1.0), r"the label is 1\.0, expected a class number or a class name"),
        (("a.png", True), "the label is True"),
        (("a.png", "2"), "the label '2' is neither a name nor a number of the 2 classes"),
        (("a.png", -1), "the label '-1' is neither"),
        ((3, 1), "the path is 3, expected text"),
        (("none.png", 1), r"none\.png' is missing"),
        (("a.txt", 1), r"a\.txt' is not one of jpg"),
    ],
)
def test_errors_of_values(write, read, row, said, home):
    (home / "a.txt").write_text("x")
    with pytest.raises(InputError, match=said):
        read(write(home / "list", [row]), classes=["a", "b"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no images"),
        ('{"path": "a.png", "label": 1}\n{"path": "a.png"', r"line 2: it is not JSON"),
        ('{"path": "a.png", "label": 1}\n\n["a.png", 1]', r"line 3: found list, expected a JSON object"),
        ('{"path": "a.png", "label": 1}\n{"path": "a.png"}', r"line 2, has no column 'label'"),
        ("[" * 100_000, r"line 1: it is not JSON"),
        ('{"path": "a.png", "label": ' + "9" * 5000 + "}", r"line 1: it is not JSON"),
        (" " * (1 << 20) + "{}", r"line 1: it is longer than 1048576 characters"),
    ],
)
def test_jsonl_errors(text, said, home):
    (home / "list.jsonl").write_text(text)
    with pytest.raises(InputError, match=said):
        jsonl_list(home / "list.jsonl")


@pytest.mark.parametrize(("read", "format"), [(jsonl_list, "JSONL"), (parquet_list, "Parquet")])
def test_a_file_that_is_none(read, format, home):
    if format == "Parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra lightning-robust[parquet])")
    for name in ("none", "a.png"):
        with pytest.raises(InputError, match=f"cannot be read as a {format} list"):
            read(home / name)


def test_parquet_without_its_library(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow, which is not installed.*lightning-robust\[parquet\]"):
        parquet_list(home / "list.parquet")
