"""Every damage that tarfile and webdataset read over in silence must raise here."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_robust.errors import ShardError
from lightning_robust.shards.tar import member_before, stream_tar, walk_tar


@pytest.fixture
def shard(tmp_path, write_tar, make_png):
    members = [
        (f"{key:03d}.{kind}", data) for key in range(20) for kind, data in (("cls", b"1"), ("png", make_png(key)))
    ]
    return write_tar(tmp_path / "a.tar", members)


def _tarfile_members(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as archive:
        return [(info.name, info.offset_data, info.size) for info in archive if info.isreg()]


def _rewrite(path: Path, change) -> str:
    path.write_bytes(change(path.read_bytes()))
    return str(path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_agrees_with_tarfile(tmp_path, write_tar, format):
    long = "d" * 90 + "/" + "n" * 90 + ".png"
    names = ["a.cls", "folder/b.png", "ünïcödé.png", long]
    if format != tarfile.USTAR_FORMAT:
        names.append("x" * 300 + ".png")
    path = write_tar(tmp_path / "a.tar", [(name, b"x" * (700 * n)) for n, name in enumerate(names)], format=format)
    assert list(walk_tar(str(path))) == _tarfile_members(path)


def test_directories_and_git_comments_are_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a commit"}) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("folder/a.cls"))
    assert [member.name for member in walk_tar(str(path))] == ["folder/a.cls"]


def test_pax_path_and_size_win_over_the_header(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("short.cls")
        info.pax_headers = {"path": "true/name.cls"}
        info.size = 3
        archive.addfile(info, io.BytesIO(b"123"))
    assert list(walk_tar(str(path))) == _tarfile_members(path)


def test_cut_at_any_block_raises_and_names_the_shard(shard):
    whole = shard.read_bytes()
    end = max(offset + size for _, offset, size in _tarfile_members(shard))
    end = -(-end // 512) * 512
    for length in sorted({*range(0, end + 1024, 512), *range(100, end, 1777), end - 1, end + 600}):
        shard.write_bytes(whole[:length])
        with pytest.raises(ShardError, match=r"a\.tar"):
            list(walk_tar(str(shard)))
    shard.write_bytes(whole[: end + 1024])  # the two blocks that end an archive are enough
    assert len(list(walk_tar(str(shard)))) == 40


def test_messages_give_expected_and_actual(shard):
    with pytest.raises(ShardError, match=r"after 20 members.*should end at byte \d+, but the file ends after \d+"):
        list(walk_tar(_rewrite(shard, lambda data: data[: _tarfile_members(shard)[20][1] + 0])))


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, 512 * 8 - 1), member=st.integers(1, 39))
def test_no_flipped_header_bit_shortens_the_shard(bit, member, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(40):
            archive.addfile(tarfile.TarInfo(f"{number}.cls"))
    data = bytearray(path.read_bytes())
    data[member * 512 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    if not 148 <= bit // 8 < 156:
        with pytest.raises(ShardError, match=f"after {member} members: found damaged"):
            list(walk_tar(str(path)))
    else:  # the checksum's own field has digits that may fall away and padding that may change
        with contextlib.suppress(ShardError):
            assert len(list(walk_tar(str(path)))) == 40


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=4000), start=st.sampled_from([b"", b"\0" * 512]))
def test_random_bytes_never_pass_for_a_shard(data, start, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    path.write_bytes(start + data)
    if any(start + data) or len(start + data) < 1024:
        with pytest.raises(ShardError, match=r"fuzz\.tar"):
            list(walk_tar(str(path)))
    else:
        assert list(walk_tar(str(path))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"", r"empty \(0 bytes\)"),
        (lambda data: b"<html><body>404</body></html>" * 40, "not a tar file"),
        (lambda data: data[:200], "not a tar file"),
        (gzip.compress, r"compressed \(gzip\)"),
        (lambda data: data + data, "goes on with more data"),
    ],
)
def test_bad_files(shard, change, said):
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(ShardError, match=said):
        list(walk_tar(str(shard)))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ShardError, match="missing"):
        list(walk_tar(str(tmp_path / "none.tar")))
    with pytest.raises(ShardError, match="folder"):
        list(walk_tar(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "kind", "size", "said"),
    [
        ("a.png", tarfile.SYMTYPE, 0, "symbolic link"),
        ("a.png", tarfile.LNKTYPE, 0, "hard link"),
        ("a.png", tarfile.CHRTYPE, 0, "device"),
        ("a.png", tarfile.FIFOTYPE, 0, "pipe"),
        ("a.png", b"S", 0, "of type"),
        ("/etc/x.png", tarfile.REGTYPE, 0, "leads out"),
        ("../../etc/x.png", tarfile.REGTYPE, 0, "leads out"),
        ("a.png", tarfile.REGTYPE, 8**11 - 1, "limit is"),
        ("a.png", tarfile.REGTYPE, 1 << 80, "limit is"),
        ("a.png", tarfile.XHDTYPE, 1 << 40, "extended header"),
    ],
)
def test_hostile_members(tmp_path, name, kind, size, said):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    path = tmp_path / "hostile.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT)[-512:] + b"\0" * 10240)
    with pytest.raises(ShardError, match=said):
        list(walk_tar(str(path)))


@pytest.mark.parametrize(
    "record", [b"99999 path=a\n", b"x path=a\n", b"0 \n", b"5 \n", b"18 GNU.sparse.x=1\n", b"11 size=-1\n"]
)
def test_hostile_pax_records(tmp_path, record):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    member = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
    path = tmp_path / "hostile.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + member + b"\0" * 1024)
    with pytest.raises(ShardError, match=r"hostile\.tar"):
        list(walk_tar(str(path)))


def test_member_before_reads_the_name_and_never_raises(shard, tmp_path):
    name, offset, _ = _tarfile_members(shard)[3]
    assert member_before(str(shard), offset) == name
    assert member_before(str(tmp_path / "none"), 512) is None


class _Trickle(io.RawIOBase):
    """A file that cannot be sought and gives few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        part = self._data.read(min(len(buffer), 700))
        buffer[: len(part)] = part
        return len(part)


def _streamed(data: bytes) -> list[tuple[str, bytes]]:
    return list(stream_tar(io.BufferedReader(_Trickle(data)), "a.tar"))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_stream_agrees_with_tarfile(tmp_path, write_tar, format):
    names = ["a.cls", "folder/b.png", "ünïcödé.png", "d" * 90 + "/" + "n" * 90 + ".png", "empty.png"]
    sizes = [700, 512, 100_000, 1, 0]
    contents = [os.urandom(size) for size in sizes]
    path = write_tar(tmp_path / "a.tar", list(zip(names, contents, strict=True)), format=format)
    assert _streamed(path.read_bytes()) == list(zip(names, contents, strict=True))


def test_a_stream_gives_what_the_walk_finds(shard):
    whole = shard.read_bytes()
    walked = [(member.name, whole[member.offset :][: member.size]) for member in walk_tar(str(shard))]
    assert _streamed(whole) == walked


def test_a_stream_that_is_cut_at_any_block_raises(shard):
    whole = shard.read_bytes()
    end = max(offset + size for _, offset, size in _tarfile_members(shard))
    end = -(-end // 512) * 512
    for length in sorted({*range(0, end + 1024, 512), *range(100, end, 1777), end - 1, end + 600}):
        with pytest.raises(ShardError, match=r"a\.tar"):
            _streamed(whole[:length])
    assert len(_streamed(whole[: end + 1024])) == 40


def test_a_stream_is_held_to_the_same_rules(shard):
    whole = shard.read_bytes()
    for damaged, message in [
        (gzip.compress(whole), "compressed"),
        (whole + whole, "goes on with more data"),
        (b"<html>" * 999, "not a tar file"),
        (whole[:512] + whole[1024:], "damaged bytes"),
    ]:
        with pytest.raises(ShardError, match=message):
            _streamed(damaged)
    with pytest.raises(ShardError, match=r"claims \d+ bytes; the limit is 50"):
        list(stream_tar(io.BytesIO(whole), "a.tar", max_member_bytes=50))
