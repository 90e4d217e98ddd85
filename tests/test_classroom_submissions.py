"""Whatever students hand in is read, or told why not."""

import json
import zipfile

import pytest
from synthetic_class import UNREADABLE

from qlora_lab.classroom.submissions import cells_of, read, student_of

NAMES = ["01_four_bit_quantization", "03_lora"]
BOOK = b'{"cells": [{"cell_type": "code", "source": ["x = 1\\n", "y"]}, {"cell_type": "markdown", "source": "hm"}]}'


@pytest.mark.parametrize(
    ("path", "student"),
    [
        ("alice/01_four_bit_quantization/01_four_bit_quantization.ipynb", "alice"),
        ("Alice Smith_1234_assignsubmission_file_/x.ipynb", "Alice Smith_1234"),
        ("alice_01.ipynb", "alice"),
        ("01_four_bit_quantization_alice (1).ipynb", "alice"),
        ("Copy of 01_four_bit_quantization - alice.ipynb", "alice"),
        ("alice-03_lora-Copy1.ipynb", "alice"),
        ("s2001234.ipynb", "s2001234"),
        ("=cmd|x!A1/x.ipynb", "cmd_x_A1"),
        ("@alice, bob/x.ipynb", "alice_ bob"),
        ("Zoë 山田/x.ipynb", "Zoë 山田"),
        ("../../etc/x.ipynb", None),
        ("01.ipynb", None),
        ("01_four_bit_quantization.ipynb", None),
    ],
)
def test_who_handed_it_in(path, student):
    if student is None:
        with pytest.raises(ValueError, match="no student's name"):
            student_of(path, NAMES)
    else:
        assert student_of(path, NAMES) == student


def test_cells_of_all_formats():
    assert cells_of(BOOK) == (["x = 1\ny"], ["hm"])
    assert cells_of(b"\xef\xbb\xbf" + BOOK)[0] == ["x = 1\ny"]
    assert cells_of(BOOK.decode().encode("utf-16"))[0] == ["x = 1\ny"]
    old = {
        "worksheets": [{"cells": [{"cell_type": "code", "input": "x = 1"}, {"cell_type": "heading", "source": "h"}]}]
    }
    assert cells_of(json.dumps(old).encode()) == (["x = 1"], ["h"])
    odd = {
        "cells": [
            None,
            3,
            {"cell_type": "code"},
            {"cell_type": "code", "source": 7},
            {"cell_type": "code", "source": "a\r\nb"},
        ]
    }
    assert cells_of(json.dumps(odd).encode())[0] == ["", "a\nb"]
    half = b'{"cells": [{"cell_type": "code", "source": "x = \'\\ud800\'"}]}'
    assert cells_of(half)[0][0].encode() == b"x = '?'"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>", "a web page"),
        (b'{"cells": [', "not all of it"),
        (b"\xff\xfa\xf0", "no text"),
        (b"[]", "no cells"),
        (b'{"cells": 3}', "no cells"),
        (b'{"cells": []}', "without code"),
    ],
)
def test_what_is_no_notebook(data, reason):
    with pytest.raises(ValueError, match=reason):
        cells_of(data)


def test_one_bad_file_does_not_stop_the_rest(tmp_path):
    for path, content in (UNREADABLE | {"alice/x.ipynb": BOOK, ".hidden/x.ipynb": b"", "bob.ipynb": BOOK}).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    handed, unreadable = read(tmp_path, NAMES)
    assert {one.student for one in handed} == {"alice", "bob", "nobody"}
    assert {one.path for one in unreadable} == {
        *(f"nobody/{name}" for name in ("empty.ipynb", "page.ipynb", "cut.ipynb", "report.pdf", "list.ipynb")),
        *("nobody/deep.ipynb", "nobody/broken.zip", "01_four_bit_quantization.ipynb"),
    }
    assert all(one.reason for one in unreadable)


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


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read(tmp_path / "none", NAMES)
    with pytest.raises(ValueError, match="nothing was handed in"):
        read(tmp_path, NAMES)
