"""Open answers are found by their line, or where they stand; what may be one and was not found is told."""

import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from nbconvert.filters import markdown2html

from qlora_lab.classroom.gradebook import _harmless
from qlora_lab.classroom.open_answers import find_open_answers, open_answers

NAME, ID, MARKER = "01_four_bit_quantization", "question-01-a", "**Answer to question 01-a**"


@pytest.fixture
def texts(course):
    """The text cells of the first notebook, as they were handed out, and the places of question and answer."""
    cells = [cell.source for cell in course.books[NAME].cells if cell.cell_type == "markdown"]
    (place,) = [number for number, text in enumerate(cells) if text.startswith(MARKER)]
    assert cells[place - 1].startswith("### Question 01-a") and "YOUR ANSWER HERE" in cells[place]
    return cells, place


@pytest.mark.parametrize(
    "cells",
    [
        [MARKER] * 3000,
        [f"{MARKER}\n\nYOUR ANSWER HERE"] * 3000,
        ["### Question 01-a"] * 3000,
        [MARKER, *["x"] * 3, ""] * 600,
        ["\n" * 10**6],
        [" " * 10**6 + "x"],
    ],
    ids=["lines", "stubs", "headings", "answers", "ends of lines", "spaces"],
)
def test_each_cell_is_looked_at_a_few_times_however_many_there_are(course, cells):
    """Counted, not timed: calls of functions of open_answers.py."""
    counted = [0]

    def count(frame, event, _):
        counted[0] += event == "call" and frame.f_code.co_filename.endswith("open_answers.py")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        look(course, cells)
    finally:
        sys.setprofile(before)
    assert counted[0] < 100 * len(cells) + 1000


def test_the_last_answer_counts_and_what_is_empty_after_it_does_not(course):
    cells = [MARKER, "Old.", MARKER, "New.", "And more.", MARKER, MARKER, ""]
    assert look(course, cells).opened == {ID: f"{MARKER}\n\nNew.\n\nAnd more."}


def look(course, *files, attempted=True):
    found = {"decode": {"status": "answer" if attempted else "missing", "code": ""}}
    work = SimpleNamespace(files=["ada/x.ipynb"], texts=files, found=found, opened={}, notes=[])
    problems = find_open_answers(course, [work])
    assert [one.reason for one in problems] == work.notes
    return work


HARMFUL = [
    "[x](javascript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](JaVaScRiPt:alert(1) 'title')",
    "[x][y]\n\n[y]: javascript:alert(1)",
    "[y][]\n\n[y]: javascript:alert(1)",
    "[y]\n\n  [y]: javascript:alert(1)",
    "![x](http://192.0.2.1/seen.png)",
    "![x][y]\n\n[y]: data:image/svg+xml,x",
    "[![x](a)](javascript:alert(1))",
    "[x](data:text/html,x)",
    "<javascript:alert(1)>",
    "<img src=x onerror=alert(1)>",
    "> [x](javascript:alert(1))",
    "- [ ] [x](vbscript:x)",
    "| a |\n|---|\n| [x](javascript:x) |",
    "[x\n](javascript:alert(1))",
    "[[x]](javascript:alert(1))",
    "[x]\\[y](javascript:alert(1))",
    "[^1]\n\n[^1]: [x](javascript:x)",
]


@pytest.mark.parametrize("text", HARMFUL)
def test_an_answer_is_text_on_the_teachers_page_and_fetches_and_runs_nothing(text):
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append(tag)
            names.update(dict(attributes))

    found, names = [], {}
    Tags().feed(markdown2html(_harmless(text)))
    assert not {"img", "script", "iframe", "object", "svg"} & set(found)
    assert names.pop("href", "http://").startswith("http://")  # a web address that stands there as such
    assert not {name for name in names if name == "src" or name.startswith("on")}


@pytest.mark.parametrize("command", [r"\href{javascript:alert(1)}{x}", r"\let\a\href \a{x}{y}", r"\require{html}"])
def test_nor_does_tex_link(command):
    assert r"\href" not in _harmless(command) and r"\require" not in _harmless(command)


@pytest.mark.parametrize("text", [r"$\frac{a}{b} < x_{[1]}$ and \hrefs", "**Bold**, `x[1]`, [1] and (2)", "a\n\n- b"])
def test_other_text_stays_as_it_was_written(text):
    assert _harmless(text) == text.replace("<", "&lt;")


def test_a_course_has_its_questions(course):
    assert [answer.id for answer in open_answers(course)] == ["question-01-a", "question-03-a", "question-05-a"]


@pytest.mark.parametrize(
    ("answer", "opened"),
    [
        ([MARKER + "\n\nBlocks."], "Blocks."),
        ([MARKER + "\n\nYOUR ANSWER HERE\n\nBlocks."], "YOUR ANSWER HERE\n\nBlocks."),
        (["Blocks."], "Blocks."),  # in place of the line
        ([MARKER, "Blocks."], "Blocks."),
        ([MARKER + "\n\nYOUR ANSWER HERE", "Blocks."], "Blocks."),  # in a cell after the one for it
        ([MARKER + "\n\nBlocks.", "And scales."], "Blocks.\n\nAnd scales."),
        (["", "Blocks."], "Blocks."),
    ],
)
def test_an_answer_is_found_whatever_became_of_its_line(course, texts, answer, opened):
    cells, place = texts
    work = look(course, [*cells[:place], *answer, *cells[place + 1 :]])
    assert work.opened == {ID: f"{MARKER}\n\n{opened}"} and not work.notes


def test_an_answer_in_the_questions_own_cell(course, texts):
    cells, place = texts
    work = look(course, [*cells[: place - 1], cells[place - 1] + "\n\nBlocks.", *cells[place:]])
    assert work.opened == {ID: f"{MARKER}\n\nBlocks."}


def test_the_answer_to_the_next_question_is_not_taken_for_this_ones(course, texts):
    cells, place = texts
    other = "**Answer to question 03-a**\n\nRanks."
    work = look(course, [*cells[:place], other])
    assert work.opened == {"question-03-a": other}


def test_the_later_file_counts(course, texts):
    cells, place = texts
    files = [[*cells[:place], f"{MARKER}\n\n{text}"] for text in ("first", "second")]
    assert look(course, *files, cells).opened == {ID: f"{MARKER}\n\nsecond"}


def test_what_was_not_answered_is_neither_found_nor_told(course, texts):
    cells, place = texts
    for files in ([cells], [cells[:place]], [["my own notes", *cells]], [[]], []):
        work = look(course, *files)
        assert not work.opened and not work.notes


def test_text_that_may_be_a_lost_answer_is_told(course, texts):
    cells, place = texts
    others = cells[: place - 1]
    (note,) = look(course, ["Blocks.", *others], attempted=False).notes
    assert "No answer to question 01-a" in note and MARKER in note
    assert look(course, ["Blocks."], attempted=True).notes == [note]
    assert not look(course, ["Blocks."], attempted=False).notes  # another notebook's
