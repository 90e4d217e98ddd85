"""Due dates: what is understood, and that students and the gradebook have the same moment."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from qlora_lab.classroom.release import due_dates, in_words
from qlora_lab.cli.commands import app

BOOKS = [Path("01_four_bit_quantization.ipynb"), Path("05_qlora_layer_by_layer.ipynb")]


def test_one_for_all_and_another_for_one_in_either_order():
    everyone, own = "2026-12-04T18:00+01:00", "05=2026-12-11T12:30Z"
    for texts in ([everyone, own], [own, everyone]):
        found = due_dates(texts, BOOKS)
        assert found[BOOKS[0].stem] == datetime.fromisoformat(everyone)
        assert found[BOOKS[1].stem] == datetime(2026, 12, 11, 12, 30, tzinfo=UTC)
    assert list(due_dates([own], BOOKS)) == [BOOKS[1].stem] and due_dates([], BOOKS) == {}


def test_a_date_without_an_offset_is_this_machines():
    found = due_dates(["2026-12-04 18:00"], BOOKS[:1])[BOOKS[0].stem]
    assert found == datetime(2026, 12, 4, 18, 0).astimezone() and found.tzinfo is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tomorrow", "write 2026-12-04T18:00 for all"),
        ("2026-13-04T18:00", "is not understood"),
        ("2026-12-04", "no time of day"),
        ("03=2026-12-04T18:00", "'03' is none of the notebooks 01_four_bit_quantization, 05_qlora_layer_by_layer"),
        ("=2026-12-04T18:00", "is none of the notebooks"),
    ],
)
def test_what_is_no_date_is_said_before_anything_is_written(tmp_path, text, words):
    with pytest.raises(ValueError, match="due date") as caught:
        due_dates([text], BOOKS)
    assert words in str(caught.value)
    arguments = ["classroom", "release", "--notebooks", "01", "--out", str(tmp_path / "course"), "--due", text]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "due date" in result.output and not (tmp_path / "course").exists()


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.integers(-12 * 4, 14 * 4))
def test_what_students_read_is_the_moment(moment, quarters):
    date = moment.replace(second=0, microsecond=0, tzinfo=timezone(timedelta(minutes=15 * quarters)))
    assert datetime.strptime(in_words(date), "%A, %d %B %Y, %H:%M (UTC%z)") == date


@pytest.mark.slow
def test_students_read_it_and_the_gradebook_has_it_in_utc(tmp_path):
    from nbgrader.api import Gradebook

    arguments = ["classroom", "release", "--notebooks", "01", "--out", str(tmp_path / "course")]
    name = "01_four_bit_quantization"
    for due, words, moment in (
        (["--due", "2026-12-04T18:00+01:00"], "Friday, 4 December 2026, 18:00 (UTC+01:00)", datetime(2026, 12, 4, 17)),
        ([], None, None),
    ):
        result = CliRunner().invoke(app, [*arguments, *due])
        assert result.exit_code == 0, result.output
        text = (tmp_path / "course" / "release" / name / f"{name}.ipynb").read_text()
        assert words in text if words else " due **" not in text
        with Gradebook(f"sqlite:///{tmp_path / 'course' / 'gradebook.db'}") as book:
            assert book.find_assignment(name).duedate == moment
