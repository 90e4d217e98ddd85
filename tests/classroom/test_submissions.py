"""Whatever students hand in is read, or told why not."""

import bz2
import gzip
import json
import lzma

import pytest
from synthetic_class import LISTED, UNREADABLE

from qlora_lab.classroom.submissions import Doubtful, Unreadable, cells_of, read

NAMES = ["01_four_bit_quantization", "03_lora"]
BOOK = b'{"cells": [{"cell_type": "code", "source": ["x = 1\\n", "y"]}, {"cell_type": "markdown", "source": "hm"}]}'


def test_cells_of_all_formats():
    assert cells_of(BOOK) == (["x = 1\ny"], ["hm"])
    assert cells_of(b"\xef\xbb\xbf" + BOOK)[0] == ["x = 1\ny"]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"):
        assert cells_of(BOOK.decode().encode(encoding))[0] == ["x = 1\ny"]
    merged = {"cells": [{"cell_type": "code", "source": ["# how\n", "<<<<<<< no merge"]}]}
    assert cells_of(json.dumps(merged, indent=1).encode())[0] == ["# how\n<<<<<<< no merge"]
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
        (b"Rar!\x1a\x07\x00" + bytes(50), "but a RAR archive: hand in the notebook itself, or a zip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), "but a 7z archive"),
        (gzip.compress(BOOK, mtime=0), "packed with gzip"),
        (bz2.compress(BOOK), "packed with bzip2"),
        (lzma.compress(BOOK), "packed with xz"),
        (b"\0" * 257 + b"ustar" + bytes(250), "but a tar archive"),
        (b"PK\x03\x04" + bytes(60), "but a zip archive or a document, under another name"),
        (b"%PDF-1.4", "but a PDF"),
        (b"\x89PNG\r\n", "but a picture"),
        (b'{"cells": [\n<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> b\n]}', "marks of a merge"),
        (b'{"cells": []}', "without code"),
        (b'{"worksheets": 5}', "no cells"),
        (b'{"worksheets": [{"cells": null}]}', "no cells"),
        (b'{"worksheets": [{"cells": []}]}', "without code"),
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
    of_something_else = {"nobody/other.ipynb"}  # is a notebook
    assert {one.path for one in unreadable} == LISTED - of_something_else | {".hidden/x.ipynb"}
    assert all(type(one) is Unreadable and one.reason for one in unreadable)


def put(folder, paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(BOOK)
    return folder


def test_paths_and_students_can_be_written_whatever_the_bytes_of_a_file_name(tmp_path):
    put(tmp_path, ["M\udcfcller/x.ipynb", "M\udcf6ller/x.ipynb"])
    handed, problems = read(tmp_path, NAMES)
    assert [one.student for one in handed] == ["M_F6ller", "M_FCller"] and not problems
    assert [one.path.encode() for one in handed] == [b"M%F6ller/x.ipynb", b"M%FCller/x.ipynb"]


def doubts(problems):
    assert all(type(one) is Doubtful for one in problems)
    return {one.path: one.reason for one in problems}


def test_the_folder_that_a_class_was_compressed_with_is_no_student(tmp_path):
    handed, problems = read(put(tmp_path, ["all/ada/x.ipynb", "all/bob/deeper/y.ipynb", "all/carol/z.ipynb"]), NAMES)
    assert [one.student for one in handed] == ["ada", "bob", "carol"]
    assert handed[0].path == "all/ada/x.ipynb" and "the class's" in doubts(problems)["all/"]


def test_a_class_that_looks_like_one_student_is_told(tmp_path):
    handed, problems = read(put(tmp_path, ["all/ada_01.ipynb", "all/bob_01.ipynb", "all/carol_01.ipynb"]), NAMES)
    assert {one.student for one in handed} == {"all"}
    assert "all 3 notebooks were taken for this student's" in doubts(problems)["all"]


def test_a_download_of_a_class_beside_others_is_told(tmp_path):
    paths = ["hw1/ada_12_3456_x.ipynb", "hw1/ada_12_3456_y.ipynb", "bob/x.ipynb", "bob/ada_12_3456_x.ipynb"]
    assert not doubts(read(put(tmp_path, paths), NAMES)[1])
    handed, problems = read(put(tmp_path, ["hw1/carol_13_3457_x.ipynb"]), NAMES)
    assert {one.student for one in handed} == {"hw1", "bob"}
    (reason,) = doubts(problems).values()
    assert "files of ada_12, carol_13 lie in it" in reason


def test_two_names_that_become_one_are_told(tmp_path):
    handed, problems = read(put(tmp_path, ["a;b/x.ipynb", "a,b/x.ipynb", "a,b/y.ipynb", "carol_01.ipynb"]), NAMES)
    assert {one.student for one in handed} == {"a_b", "carol"}
    (reason,) = doubts(problems).values()
    assert '"a;b" and "a,b" are both written a_b' in reason


def test_names_that_only_differ_in_what_a_file_name_adds_are_not_told(tmp_path):
    paths = ["ada_01.ipynb", "ada_03 (1).ipynb", "01_four_bit_quantization - ada.ipynb", "ada/x.ipynb", "bob_01.ipynb"]
    assert not read(put(tmp_path, paths), NAMES)[1]


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read(tmp_path / "none", NAMES)
    with pytest.raises(ValueError, match="nothing was handed in"):
        read(tmp_path, NAMES)
