"""Answers to open questions: found by the line that their cells begin with, or else by where they stand."""

import itertools
import re
from collections.abc import Callable, Sequence

from qlora_lab.classroom.course import Course
from qlora_lab.classroom.submissions import Doubtful

LOST = (
    "No answer to {name} was found, but text that was not handed out: if that is the answer, it needs the line "
    "{marker} before it. Hand it in again with this line, or have it graded by hand."
)


class OpenAnswer:
    """A cell of an assignment that a person grades.

    Args:
        book: name of the assignment.
        question, cell: the cell that asks, and the one for the answer, as they were handed out.
    """

    def __init__(self, book: str, question, cell):
        self.book, self.id = book, cell.metadata["nbgrader"]["grade_id"]
        self.question, self.template = question.source.strip(), cell.source.strip()
        self.marker, _, self.stub = self.template.partition("\n")
        self.heading = self.question.partition("\n")[0]
        self._heading_line = re.compile(rf"^[^\S\n]*{re.escape(self.heading)}[^\S\n]*$", re.MULTILINE)

    def in_(self, text: str) -> bool:
        """Whether a cell is, or was, the one that asks or the one for the answer."""
        return self.marker in text or self._heading_line.search(text) is not None

    def added(self, text: str) -> str:
        """What is left of such a cell without what was handed out in it."""
        for own in filter(None, (self.question, self.template, self.heading, self.marker, self.stub.strip())):
            text = text.replace(own, "")
        return text.strip()

    def find(self, texts: Sequence[str], ends: Callable[[str], bool]) -> str | None:
        """The last answer among the text cells of a notebook, with its line before it; None if there is none.

        Args:
            ends: whether a cell is none of the student's own, or of another question. An answer may go on in cells
                after its own, or stand only there.
        """
        end = len(texts)
        for place in reversed([place for place, text in enumerate(texts) if self.in_(text)]):
            after = itertools.takewhile(lambda text: self.in_(text) or not ends(text), texts[place + 1 : end])
            own, *more = map(self.added, (texts[place], *after))
            # A cell that has its line is taken as it is: what changes is shown to a person again.
            begin = texts[place] if own and self.marker in texts[place] else f"{self.marker}\n\n{own}".strip()
            if own or any(more):
                return "\n\n".join(filter(None, [begin, *more]))
            end = place  # from there on nothing was added
        return None


def open_answers(course: Course) -> list[OpenAnswer]:
    """All of a course."""
    return [
        OpenAnswer(name, question, cell)
        for name, book in course.books.items()
        for question, cell in itertools.pairwise(book.cells)
        if cell.cell_type == "markdown" and cell.metadata.get("nbgrader", {}).get("solution")
    ]


def find_open_answers(course: Course, works: list) -> list[Doubtful]:
    """Put into each of `works` (`grading.StudentWork`) what was answered, and a note where an answer may be lost.

    Returns:
        the same notes, for the teacher.
    """
    asked = open_answers(course)
    given = {name: {cell.source.strip() for cell in book.cells} for name, book in course.books.items()}
    of_all = set().union(*given.values())
    problems = []
    for work in works:
        files = [tuple(file) for file in work.texts]
        for answer in asked:
            others = [other for other in asked if other is not answer]

            def ends(text: str, others=others) -> bool:
                return text.strip() in of_all or any(other.in_(text) for other in others)

            found = [text for file in files if (text := answer.find(file, ends)) is not None]
            of_others = set().union(*(texts for name, texts in given.items() if name != answer.book))
            if found:
                work.opened[answer.id] = found[-1]
            elif _may_be_lost(answer, work, files, course, given[answer.book] - of_others, of_all):
                note = LOST.format(name=answer.id.replace("question-", "question "), marker=answer.marker)
                work.notes.append(note)
                problems.append(Doubtful(", ".join(work.files), note))
    return problems


def _may_be_lost(
    answer: OpenAnswer, work, files: list[tuple], course: Course, given: set[str], of_all: set[str]
) -> bool:
    """Whether the answer's line is gone from a notebook that was handed in, and there is text of the student's own."""
    texts = [text.strip() for file in files for text in file if text.strip()]
    exercises = [item.exercise for item in course.items if item.notebook == answer.book]
    handed_in = any(work.found.get(e, {}).get("status") in ("answer", "broken") for e in exercises)
    handed_in = handed_in or any(text in given for text in texts)
    return handed_in and any(text not in of_all for text in texts) and not any(answer.marker in text for text in texts)
