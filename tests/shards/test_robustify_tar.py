from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.errors import ShardError
from lightning_robust.shards.robustify_tar import copy_tar
from lightning_robust.shards.tar import walk_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = {
    "plain": "{:02d}",
    "folder": "some/folder/{:02d}",
    "long": "f" * 90 + "/" + "k" * 60 + "{:02d}",
    "ü": "kötük{:02d}",
}


def _write(path, members, kind, *, change=lambda name, data: (name, data)):
    """Write members with Python's tarfile, a writer that shares no code with the package."""
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for number, (name, data) in enumerate(members):
            new_name, new_data = change(name, data)
            info = tarfile.TarInfo(new_name)
            info.size = len(new_data)
            info.mtime = 1_700_000_000.25 + number if kind == "pax" else 1_700_000_000 + number
            info.mode = 0o640 + number % 2
            info.uid, info.uname = 1000 + number, "someone"
            archive.addfile(info, io.BytesIO(new_data))
    return path


def _copied(path, change):
    target = io.BytesIO()

    def replace(member):
        old = member.name, path.read_bytes()[member.offset : member.offset + member.size]
        new = change(*old)
        return None if new == old else new

    copy_tar(str(path), walk_tar(str(path)), target.write, replace)
    return target.getvalue()


def _webp(name, data):
    stem, _, extension = name.rpartition(".")
    return (f"{stem}.webp", b"<" + 2 * data + b">") if extension == "jpg" else (name, data)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 600), st.booleans()), max_size=6),
    kind=st.sampled_from(sorted(FORMATS)),
    naming=st.sampled_from(sorted(NAMES)),
)
def test_the_copy_is_what_tarfile_writes_of_the_changed_members(sizes, kind, naming, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tar")
    members = []
    for number, (large, small, swapped) in enumerate(sizes):
        key = NAMES[naming].format(number)
        pair = [(f"{key}.jpg", bytes([number]) * large), (f"{key}.unknown.bin", b"\xff" * small)]
        members += pair[::-1] if swapped else pair
    source = _write(folder / "source.tar", members, kind)
    expected = _write(folder / "expected.tar", members, kind, change=_webp).read_bytes()
    copied = _copied(source, _webp)
    # how many zero blocks end the archive is the source's affair
    assert copied.rstrip(b"\0") == expected.rstrip(b"\0")
    (folder / "copied.tar").write_bytes(copied)
    assert [member.name for member in walk_tar(str(folder / "copied.tar"))] == [_webp(*member)[0] for member in members]


def test_nothing_changes_where_nothing_is_replaced(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("below")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("below/x.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert _copied(path, lambda name, data: (name, data)) == path.read_bytes()


def test_a_pax_size_tells_the_new_size(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x.jpg")
        info.size = 700
        info.pax_headers = {"size": "700", "comment": "kept"}
        archive.addfile(info, io.BytesIO(bytes(700)))
        folder = tarfile.TarInfo("f")
        folder.type = tarfile.DIRTYPE
        folder.pax_headers = {"comment": "of the folder"}
        archive.addfile(folder)
        last = tarfile.TarInfo("y.txt")
        last.size = 1
        archive.addfile(last, io.BytesIO(b"y"))
    copied = _copied(path, lambda name, data: ("x.jpg", b"short") if name == "x.jpg" else (name, data))
    with tarfile.open(fileobj=io.BytesIO(copied)) as archive:
        first, folder, last = archive.getmembers()
        assert archive.extractfile(first).read() == b"short"
        assert first.pax_headers == {"size": "5", "comment": "kept"}
        assert folder.pax_headers == {"comment": "of the folder"}
        assert archive.extractfile(last).read() == b"y"


def test_a_name_that_outgrows_its_header_is_refused(tmp_path):
    name = "k" * 96 + ".jpg"
    path = _write(tmp_path / "a.tar", [(name, b"1")], "ustar")
    assert len(_copied(path, lambda *_: (name[:-4] + ".png", b"2"))) == path.stat().st_size
    with pytest.raises(ShardError, match=r"cannot be renamed.*100 bytes.*--encode same"):
        _copied(path, lambda *_: (name[:-4] + ".webp", b"2"))
