"""Lists and folders that name masks, boxes and other members beside the images."""

from __future__ import annotations

import csv
import gc
import json
from datetime import date

import cv2
import numpy as np
import pytest

from lightning_robust.datamodules import ShardLoader
from lightning_robust.errors import InputError
from lightning_robust.shards import open_index, pack
from lightning_robust.shards.sources import csv_list, image_folder, jsonl_list, listedmembers, parquet_list

SIZE, COUNT = 8, 6
MEMBERS = {"seg.png": "mask", "boxes.json": "annotation"}
TARGETS = {"mask": "seg.png", "boxes": {"member": "boxes.json", "kind": "boxes"}}


def _encoded(pixels):
    return bytes(cv2.imencode(".png", pixels)[1])


MASKS = [np.random.default_rng(number).integers(0, 200, (SIZE, SIZE), dtype=np.uint8) for number in range(COUNT)]
BOXES = [{"boxes": [[0, 1, 2 + number, 4.5]] * number, "labels": [3] * number} for number in range(COUNT)]


@pytest.fixture
def home(tmp_path, make_png):
    for folder in ("images/cat", "masks/cat"):
        (tmp_path / folder).mkdir(parents=True)
    for number, mask in enumerate(MASKS):
        (tmp_path / f"images/cat/{number}.png").write_bytes(make_png(number, SIZE))
        (tmp_path / f"masks/cat/{number}.png").write_bytes(_encoded(mask))
    return tmp_path


def _rows(home):
    # every second mask by an absolute path, which images may have too
    masks = [str(home / f"masks/cat/{n}.png") if n % 2 else f"masks/cat/{n}.png" for n in range(COUNT)]
    return [
        {"path": f"images/cat/{n}.png", "mask": mask, "annotation": boxes}
        for n, (mask, boxes) in enumerate(zip(masks, BOXES, strict=True))
    ]


def _write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            # text over several lines, as a spreadsheet writes what was pasted into a cell
            writer.writerow({k: v if isinstance(v, str | None) else json.dumps(v, indent=1) for k, v in row.items()})
    return path


def _write_jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _write_parquet(path, rows):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra lightning-robust[parquet])")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


LISTS = [
    pytest.param(_write_csv, csv_list, id="csv"),
    pytest.param(_write_jsonl, jsonl_list, id="jsonl"),
    pytest.param(_write_parquet, parquet_list, id="parquet"),
]


def _loaded(folder, targets):
    members = [spec if isinstance(spec, str) else spec["member"] for spec in targets.values()]
    index = open_index(folder, label_key=None, members=members)
    return list(ShardLoader(index, batch_size=4, targets=targets, purpose="evaluate"))


@pytest.mark.parametrize(("write", "read"), LISTS)
def test_what_a_list_names_reaches_the_batches(write, read, home, monkeypatch):
    # small enough for the rows to go to disk
    monkeypatch.setattr(listedmembers, "_MOST_BYTES_IN_MEMORY", 64)
    source = read(write(home / "list", _rows(home)), label_column=None, members=MEMBERS)
    assert source.targets is None
    assert [source[number].extra["seg.png"] for number in (3, 0)] == [_encoded(MASKS[3]), _encoded(MASKS[0])]
    index = pack(source, home / "set", samples_per_shard=4)
    assert index.labels is None
    batches = _loaded(home / "set", TARGETS)
    np.testing.assert_array_equal(np.concatenate([batch.target["mask"] for batch in batches]), np.stack(MASKS))
    boxes = [one for batch in batches for one in batch.target["boxes"]]
    for found, expected in zip(boxes, BOXES, strict=True):
        assert found["boxes"].tolist() == expected["boxes"]
        assert found["labels"].tolist() == expected["labels"]
    del source
    gc.collect()  # the temporary file is closed: Python would warn otherwise, and warnings are errors


@pytest.mark.parametrize(("write", "read"), LISTS)
def test_members_stand_beside_labels(write, read, home):
    rows = [row | {"label": "cat" if number else "ant"} for number, row in enumerate(_rows(home))]
    (home / "notes.txt").write_bytes(b"as it is \xff")
    source = read(write(home / "list", rows), members={"note.txt": "path", "boxes.json": "annotation"})
    assert source.classes == ("ant", "cat")
    assert source[0].extra == {"note.txt": (home / "images/cat/0.png").read_bytes(), "boxes.json": BOXES[0]}
    assert pack(source, home / "set", shuffle_seed=1).labels.tolist().count(1) == COUNT - 1
    assert source[:2] == read(home / "list", members={"note.txt": "path", "boxes.json": "annotation"})[:2]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("mask", None, r"the member 'seg\.png' is missing: the column 'mask' is empty"),
        ("mask", "masks/none.png", r"the member 'seg\.png' \('masks/none\.png'\) is missing: there is no file"),
        ("mask", "x" * 5000, r"the member 'seg\.png' \('x+\) cannot be read: File name too long\. Correct the list"),
        ("annotation", None, r"the member 'boxes\.json' is missing"),
    ],
)
@pytest.mark.parametrize(("write", "read"), LISTS)
def test_rows_that_lack_a_member_are_named_and_counted(write, read, column, value, said, home):
    rows = _rows(home)
    rows[1][column] = rows[4][column] = value
    where = {csv_list: r"line \d+", jsonl_list: "line 2", parquet_list: "row 2"}[read]
    with pytest.raises(InputError, match=rf"list', {where}: {said}.* Such faults are in 2 of 6 rows"):
        read(write(home / "list", rows), label_column=None, members=MEMBERS)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", r"is missing"),
        ("null", r"is missing: its value is null"),
        ("{", r"is not JSON: .* Correct the list"),
        ("[NaN]", r"is not JSON: it holds NaN"),
        ("[" * 40 + "]" * 40, r"is nested more than 32 levels"),
    ],
)
def test_text_that_is_no_json(value, said, home):
    rows = _rows(home)[:1]
    rows[0]["annotation"] = value
    with pytest.raises(InputError, match=rf"line 2: the member 'boxes\.json' {said}"):
        csv_list(_write_csv(home / "list", rows), label_column=None, members=MEMBERS)


@pytest.mark.parametrize(
    ("write", "read", "value", "said"),
    [
        (_write_jsonl, jsonl_list, [float("nan")], "cannot be written as JSON: Out of range float"),
        (_write_jsonl, jsonl_list, json.loads("[" * 40 + "]" * 40), "nested more than 32 levels"),
        (_write_parquet, parquet_list, date(2020, 1, 1), "cannot be written as JSON: Object of type date"),
        (_write_parquet, parquet_list, b"{}", "cannot be written as JSON: Object of type bytes"),
    ],
)
def test_values_that_are_no_json(write, read, value, said, home):
    rows = _rows(home)[:1]
    rows[0]["annotation"] = value
    with pytest.raises(InputError, match=rf"(line|row) 1: the member 'boxes\.json' .*{said}"):
        read(write(home / "list", rows), label_column=None, members=MEMBERS)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_encoded(np.zeros((SIZE, SIZE, 3), np.uint8)), "is RGB color; expected one channel"),
        (_encoded(np.zeros((SIZE, 5), np.uint8)), "has 5 x 8 pixels and its image 8 x 8"),
        (_encoded(MASKS[0])[:-9], r"cannot be decoded: it is cut\. Replace the file"),
        (b"", "no PNG begins with"),
        (None, "cannot be read: No such file"),
    ],
    ids=["color", "size", "cut", "empty", "gone"],
)
def test_masks_that_are_none_are_found_in_their_turn(data, said, home):
    source = jsonl_list(_write_jsonl(home / "list.jsonl", _rows(home)), label_column=None, members=MEMBERS)
    mask = home / "masks/cat/4.png"
    mask.unlink() if data is None else mask.write_bytes(data)
    assert source[3].extra["boxes.json"] == BOXES[3]
    with pytest.raises(
        InputError, match=rf"list\.jsonl', line 5: the member 'seg\.png' \('masks/cat/4\.png'\) .*{said}"
    ):
        pack(source, home / "set")
    assert not list((home / "set").glob("*.tar"))


def test_a_value_in_the_place_of_a_path(home):
    path = _write_jsonl(home / "list", _rows(home))
    with pytest.raises(
        InputError, match=r"line 1: the member 'a\.txt': the column 'annotation' holds \{'boxes': .* path"
    ):
        jsonl_list(path, label_column=None, members={"a.txt": "annotation"})


def test_options_that_cannot_be(home):
    path = _write_jsonl(home / "list", _rows(home))
    with pytest.raises(InputError, match=r"has no column 'masc'.*--member"):
        jsonl_list(path, label_column=None, members={"seg.png": "masc"})
    with pytest.raises(InputError, match=r"has no column 'label'.*--no-labels"):
        jsonl_list(path, members=MEMBERS)
    for extension in ("png", "cls", "Seg.png", "../x.png"):
        with pytest.raises(InputError, match="must be made of small letters"):
            jsonl_list(path, label_column=None, members={extension: "mask"})
    with pytest.raises(InputError, match="Class names belong to class numbers"):
        jsonl_list(path, label_column=None, classes=["a"])


@pytest.mark.parametrize("labeled", [True, False])
def test_a_folder_of_masks_beside_a_folder_of_images(labeled, home):
    images = home / "images" if labeled else home / "images" / "cat"
    source = image_folder(images, labeled=labeled, masks=home / "masks" / images.relative_to(home / "images"))
    assert source.classes == (("cat",) if labeled else None)
    pack(source, home / "set")
    (batch, rest) = _loaded(home / "set", {"mask": "seg.png"})
    np.testing.assert_array_equal(np.concatenate([batch.target, rest.target]), np.stack(MASKS))


def test_masks_of_jpegs_and_of_what_has_dots(home):
    (home / "images/cat/a.b.JPG").write_bytes(bytes(cv2.imencode(".jpg", np.zeros((SIZE, SIZE, 3), np.uint8))[1]))
    with pytest.raises(InputError, match=r"a\.b\.JPG' has no mask: .*masks/cat/a\.b\.png' is missing \(1 of 7 masks"):
        image_folder(home / "images", masks=home / "masks")
    (home / "masks/cat/a.b.png").write_bytes(_encoded(MASKS[0]))
    assert image_folder(home / "images", masks=home / "masks")[-1].extra == {"seg.png": _encoded(MASKS[0])}


def test_folders_that_cannot_be(home):
    with pytest.raises(InputError, match=r"none' is not a folder\. Give the folder of the masks"):
        image_folder(home / "images", masks=home / "none")
    with pytest.raises(InputError, match="Class names belong to class numbers"):
        image_folder(home / "images", labeled=False, classes=["cat"])
    with pytest.raises(InputError, match="--no-labels"):
        image_folder(home / "images" / "cat")
    (home / "masks/cat/0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"The mask '.*masks/cat/0\.png' \(0 bytes\) cannot be decoded"):
        image_folder(home / "images", masks=home / "masks")[0]
