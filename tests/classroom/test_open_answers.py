"""Open answers are found by their line, or where they stand; what may be one and was not found is told."""

from types import SimpleNamespace

import pytest

from qlora_lab.classroom.open_answers import find_open_answers, open_answers

NAME, ID, MARKER = "01_four_bit_quantization", "question-01-a", "**Answer to question 01-a**"


@pytest.fixture
def texts(course):
    """The text cells of the first notebook, as they were handed out, and the places of question and answer."""
    cells = [cell.source for cell in course.books[NAME].cells if cell.cell_type == "markdown"]
    (place,) = [number for number, text in enumerate(cells) if text.startswith(MARKER)]
    assert cells[place - 1].startswith("### Question 01-a") and "YOUR ANSWER HERE" in cells[place]
    return cells, place


def look(course, *files, attempted=True):
    found = {"decode": {"status": "answer" if attempted else "missing", "code": ""}}
    work = SimpleNamespace(files=["ada/x.ipynb"], texts=files, found=found, opened={}, notes=[])
    problems = find_open_answers(course, [work])
    assert [one.reason for one in problems] == work.notes
    return work


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
