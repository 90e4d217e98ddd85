"""Archives of a class and of one student, packed by any program, and those made to do harm."""

import io
import json
import os
import re
import tracemalloc
import zipfile

import pytest

from qlora_lab.classroom import archives
from qlora_lab.classroom.submissions import read

NAMES = ["01_four_bit_quantization", "03_lora"]
BOOK = b'{"cells": [{"cell_type": "code", "source": ["x = 1\\n", "y"]}, {"cell_type": "markdown", "source": "hm"}]}'


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_archives_of_a_class_and_of_one_student(tmp_path):
    members = {
        "alice/x.ipynb": BOOK,
        "bob/deeper/y.ipynb": BOOK,
        "carol_01.ipynb": BOOK,
        "__MACOSX/._x": b"",
        "d/": b"",
    }
    whole = archive(tmp_path / "class.zip", members)
    for given in (whole, tmp_path):
        assert [one.student for one in read(given, NAMES)[0]] == ["alice", "bob", "carol"]
    (tmp_path / "dora.ipynb").write_bytes(BOOK)
    assert {one.student for one in read(tmp_path, NAMES)[0]} == {"class", "dora"}


def test_nothing_leaves_the_archive_and_bombs_are_refused(tmp_path):
    members = {"../../../evil/x.ipynb": BOOK, "/etc/x.ipynb": BOOK, "bomb/x.ipynb": b" " * (51 * 2**20)}
    handed, unreadable = read(archive(tmp_path / "class.zip", members), NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["class.zip"]
    assert [one.reason for one in unreadable if "bomb" in one.path] == ["larger than 50 MiB"]
    assert not any(part in one.student for one in handed for part in ("..", "/"))


def packed(members) -> bytes:
    return archive(io.BytesIO(), members).getvalue()


def students(folder):
    handed, problems = read(folder, NAMES)
    assert not problems
    return {one.student for one in handed}


def test_a_compressed_folder_of_a_class(tmp_path):
    members = {"all/ada/x.ipynb": BOOK, "all/bob/x.ipynb": BOOK, "all/read me.txt": b"x", "__MACOSX/all/._x": b""}
    handed, problems = read(archive(tmp_path / "class.zip", members), NAMES)
    assert {one.student for one in handed} == {"ada", "bob"}
    assert {one.path for one in problems} == {"all/", "all/read me.txt"}


def test_an_archive_alone_in_a_students_folder_is_that_students(tmp_path):
    (tmp_path / "ada").mkdir()
    archive(tmp_path / "ada" / "hw.zip", {"homework/01.ipynb": BOOK, "homework/03.ipynb": BOOK})
    assert students(tmp_path) == {"ada"}


def test_archives_in_the_archive_of_a_class(tmp_path):
    members = {
        "Ada L_123_assignsubmission_file_/hw.zip": packed({"hw/x.ipynb": BOOK, "/../bob/y.ipynb": BOOK}),
        "lovelacebob_12_3456_hw.ZIP": packed({"x.ipynb": BOOK}),
        "carol.zip": packed({"x.ipynb": BOOK}),
        "dora/x.ipynb": BOOK,
    }
    handed, problems = read(archive(tmp_path / "class.zip", members), NAMES)
    assert {one.student for one in handed} == {"Ada L_123", "lovelacebob_12", "carol", "dora"}
    assert [one.path for one in problems] == ["Ada L_123_assignsubmission_file_/hw/../bob/y.ipynb"]


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (b"PK\x03\x04 and no more", "not a zip archive that can be read"),
        (packed({"a.zip": packed({"x.ipynb": BOOK})}), "an archive in a student's archive"),
        (packed({"a.ipynb": b" " * (51 * 2**20)}), "larger than 50 MiB"),
        (packed({f"{n}.ipynb": b" " * (41 * 2**20) for n in range(5)}), "unpacks to more than 200 MiB"),
        (packed({f"{n}.ipynb": b"" for n in range(1001)}), "more than 1,000 files"),
    ],
)
def test_an_inner_archive_that_is_refused_costs_only_itself(tmp_path, inner, reason):
    handed, problems = read(archive(tmp_path / "class.zip", {"ada/x.ipynb": BOOK, "bob/hw.zip": inner}), NAMES)
    assert [one.student for one in handed] == ["ada"]
    assert [reason in one.reason and one.path.startswith("bob/hw") for one in problems] == [True]


def test_of_one_students_archive_notebooks_are_read_first_and_not_more_than_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_INNER", 3 * len(BOOK))
    (tmp_path / "ada.ipynb").write_bytes(BOOK)
    members = {"a.dat": b"x" * len(BOOK), "large.bin": b"x" * (51 * 2**20)} | {f"{n}.ipynb": BOOK for n in range(3)}
    archive(tmp_path / "bob.zip", members)
    handed, problems = read(tmp_path, NAMES)
    assert [one.path for one in handed] == ["ada.ipynb", "bob/0.ipynb", "bob/1.ipynb", "bob/2.ipynb"]
    assert {one.path: one.reason[:12] for one in problems} == {
        "bob/a.dat": "files before",
        "bob/large.bin": "larger than ",
    }


METHODS = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED, "bz2": zipfile.ZIP_BZIP2}
METHODS |= {"lzma": zipfile.ZIP_LZMA}


def with_claims(path, method: str, content: bytes, size: int) -> None:
    """An archive with one member, which says of itself that it has this many bytes."""
    with zipfile.ZipFile(path, "w", METHODS[method]) as file:
        file.writestr("x.ipynb", content)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.find(mark) + place
        data[start : start + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("method", METHODS)
def test_members_packed_in_any_way_are_read(tmp_path, method):
    book = BOOK.replace(b"hm", b"hm" * 50_000)
    (tmp_path / "bob").mkdir()
    with zipfile.ZipFile(tmp_path / "bob" / "hw.zip", "w", METHODS[method]) as file:
        file.writestr("x.ipynb", book)
        file.writestr("empty.ipynb", b"")
    handed, problems = read(tmp_path, NAMES)
    assert [one.path for one in handed] == ["bob/hw/x.ipynb"] and handed[0].text[0] == "hm" * 50_000
    assert [one.reason for one in problems] == ["the file is empty"]


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_member_says_of_its_size_bounds_what_is_unpacked(tmp_path, method, size):
    """A thousand bytes of bzip2 may hold gigabytes, all of which `zipfile` unpacks to give a hundred."""
    (tmp_path / "ada.ipynb").write_bytes(BOOK)
    with_claims(tmp_path / "bob.zip", method, b" " * (2**26 if method in ("bz2", "lzma") else 2**16), size)
    tracemalloc.start()
    try:
        handed, problems = read(tmp_path, NAMES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [one.path for one in handed] == ["ada.ipynb"] and [one.path for one in problems] == ["bob/x.ipynb"]
    assert peak < 2**25  # LZMA has a dictionary of 2**23


def flagged(path, mark: bytes, place: int, value: int) -> None:
    data = bytearray(path.read_bytes())
    start = data.find(mark) + place
    data[start : start + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("local", "central", "value", "reason"),
    [(6, 8, 1, "packed with a password"), (8, 10, 9, r"cannot be read .*ordinary zip")],
)
def test_a_member_that_cannot_be_read_is_told_in_a_sentence(tmp_path, local, central, value, reason):
    archive(tmp_path / "bob.zip", {"x.ipynb": BOOK})
    flagged(tmp_path / "bob.zip", b"PK\x03\x04", local, value)
    flagged(tmp_path / "bob.zip", b"PK\x01\x02", central, value)
    (tmp_path / "ada.ipynb").write_bytes(BOOK)
    handed, problems = read(tmp_path, NAMES)
    assert [one.student for one in handed] == ["ada"]
    assert re.search(reason, problems[0].reason) and "ZipInfo" not in problems[0].reason


def spoiled(**changes: int) -> bytes:
    """An archive of two notebooks; in what its directory says of the first, bytes at places are others."""
    data = bytearray(packed({"q.ipynb": BOOK, "w/fine.ipynb": BOOK}))
    start = data.find(b"PK\x01\x02")
    for place, byte in changes.items():
        data[start + int(place[1:])] = byte
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        packed({"a.ipynb": BOOK, "w/fine.ipynb": BOOK}).replace(b"a.ipynb", b"\0.ipynb"),  # no name at all
        *(spoiled(**{f"b{place}": byte}) for place in range(4, 46) for byte in (0, 255)),
        packed({"a.ipynb": BOOK})[:-5],
    ],
)
def test_no_archive_stops_the_class(tmp_path, data):
    """Neither beside others' work nor within the archive of a class."""
    (tmp_path / "ada.ipynb").write_bytes(BOOK)
    (tmp_path / "bob.zip").write_bytes(data)
    beside = read(tmp_path, NAMES)
    within = read(archive(tmp_path / "class.zip", {"ada.ipynb": BOOK, "bob.zip": data}), NAMES)
    for handed, problems in (beside, within):
        assert "ada.ipynb" in [one.path for one in handed]
        assert len(handed) + len(problems) > 1


def test_an_archive_that_a_library_stumbles_over_is_told_and_costs_only_itself(tmp_path, monkeypatch):
    listed = archives._listed

    def stumble(file):
        if "stumble" in str(file.filename):
            raise IndexError("index out of range")
        return listed(file)

    monkeypatch.setattr(archives, "_listed", stumble)
    archive(tmp_path / "bob-stumble.zip", {"x.ipynb": BOOK})
    archive(tmp_path / "carol.zip", {"x.ipynb": BOOK})
    handed, problems = read(tmp_path, NAMES)
    assert [one.student for one in handed] == ["carol"]
    assert [one.path for one in problems] == ["bob-stumble.zip"] and "IndexError" in problems[0].reason


def test_the_texts_of_a_class_are_kept_packed(tmp_path):
    book = json.dumps({"cells": [{"cell_type": "code", "source": "x = '" + "a" * 2**20 + "\U0001f600'"}]})
    with_all = archive(tmp_path / "class.zip", {f"s{n}/x.ipynb": book for n in range(20)})
    tracemalloc.start()
    try:
        handed, _ = read(with_all, NAMES)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(handed) == 20 and kept < 2**20 and peak < 20 * 2**20
    assert list(handed[7].code) == json.loads(book)["cells"][0]["source"].split("\n")


def test_an_archive_too_large_to_lie_in_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 2**10)
    members = {"ada/x.ipynb": BOOK, "bob/hw.zip": packed({"x.ipynb": os.urandom(2**11)})}
    handed, problems = read(archive(tmp_path / "class.zip", members), NAMES)
    assert [one.student for one in handed] == ["ada"]
    assert [one.path for one in problems] == ["bob/hw.zip"] and "larger than" in problems[0].reason


def test_one_download_for_each_assignment(tmp_path):
    archive(tmp_path / "hw1.zip", {"lovelaceada_12_345_01.ipynb": BOOK, "lovelacebob_13_346_01.ipynb": BOOK})
    archive(tmp_path / "hw3.zip", {"lovelaceada_12_987_03.ipynb": BOOK, "lovelacebob_LATE_13_986_x.zip": packed({})})
    assert students(tmp_path) == {"lovelaceada_12", "lovelacebob_13"}


def test_nobody_hands_in_for_others(tmp_path):
    """An archive whose contents are named as those of a whole class, beside what others handed in."""
    archive(tmp_path / "bob.zip", {"lovelaceada_12_345_01.ipynb": BOOK, "ada/01.ipynb": BOOK})
    (tmp_path / "lovelaceada_12_345_01.ipynb").write_bytes(BOOK)
    handed, _ = read(tmp_path, NAMES)
    assert {one.path: one.student for one in handed} == {
        "bob/lovelaceada_12_345_01.ipynb": "bob",
        "bob/ada/01.ipynb": "bob",
        "lovelaceada_12_345_01.ipynb": "lovelaceada_12",
    }


def dated(path, date_time):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo("old.ipynb", date_time), BOOK)


def test_an_old_archive_is_older_than_a_newer_file(tmp_path):
    (tmp_path / "ada").mkdir()
    dated(tmp_path / "ada" / "first.zip", (2020, 2, 29, 12, 0, 0))
    (tmp_path / "ada" / "new.ipynb").write_bytes(BOOK)
    times = {one.path: one.time for one in read(tmp_path, NAMES)[0]}
    assert 1_582_000_000 < times["ada/first/old.ipynb"] < 1_584_000_000 < times["ada/new.ipynb"]


def test_a_date_that_is_none_is_the_oldest(tmp_path):
    dated(tmp_path / "ada.zip", (2020, 0, 0, 12, 0, 0))
    (tmp_path / "bob_01.ipynb").write_bytes(BOOK)
    assert [one.time for one in read(tmp_path, NAMES)[0] if one.student == "ada"] == [0.0]


def test_names_as_macos_packs_them(tmp_path):
    """In UTF-8 without the flag that says so, with letters taken apart."""
    path = archive(tmp_path / "class.zip", {"Mu\u0308ller/x.ipynb": BOOK, "bob/x.ipynb": BOOK})
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(mark)
        while start >= 0:
            flags = int.from_bytes(data[start + place : start + place + 2], "little") & ~0x800
            data[start + place : start + place + 2] = flags.to_bytes(2, "little")
            start = data.find(mark, start + 1)
    path.write_bytes(data)
    assert students(path) == {"M\u00fcller", "bob"}


def test_what_looks_handed_in_and_is_not_read_has_a_row(tmp_path):
    top = tmp_path / "class"
    for place in (
        "ada/x.ipynb",
        "ada/.ipynb_checkpoints/x.ipynb",
        "bob/.mine/x.ipynb",
        "carl/.x.ipynb",
        "carl/._x.ipynb",
    ):
        (top / place).parent.mkdir(parents=True, exist_ok=True)
        (top / place).write_bytes(BOOK)
    (tmp_path / "secret.ipynb").write_bytes(BOOK)
    (top / "dora.ipynb").symlink_to(tmp_path / "secret.ipynb")
    (top / "eve").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(top / "fay.ipynb")
    handed, problems = read(top, NAMES)
    assert [one.student for one in handed] == ["ada"]
    told = {one.path: one.reason for one in problems}
    assert set(told) == {"bob/.mine/x.ipynb", "carl/.x.ipynb", "dora.ipynb", "eve", "fay.ipynb"}
    assert "begins with a dot" in told["bob/.mine/x.ipynb"] and "begins with a dot" in told["carl/.x.ipynb"]
    assert "a link" in told["dora.ipynb"] and "a link" in told["eve"] and "neither a file" in told["fay.ipynb"]


def test_what_is_hidden_in_an_archive_has_a_row(tmp_path):
    members = {"ada/x.ipynb": BOOK, "bob/.mine/x.ipynb": BOOK, "../carl.ipynb": BOOK, "ada/.DS_Store": b"x"}
    members |= {"__MACOSX/ada/._x.ipynb": b"x", "ada/.ipynb_checkpoints/x.ipynb": BOOK}
    handed, problems = read(archive(tmp_path / "class.zip", members), NAMES)
    assert [one.student for one in handed] == ["ada"]
    assert {one.path for one in problems} == {"bob/.mine/x.ipynb", "../carl.ipynb"}
