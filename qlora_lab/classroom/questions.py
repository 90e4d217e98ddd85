"""Open questions, which a person grades: what is asked, and what a good answer has."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """rubric: (points, what for), adding up to the question's points."""

    id: str
    text: str
    rubric: tuple[tuple[int, str], ...]

    @property
    def points(self) -> int:
        return sum(points for points, _ in self.rubric)

    @property
    def marker(self) -> str:
        """The line that an answer's cell begins with; the answer is found by it."""
        return f"**Answer to question {self.id}**"

    @property
    def rubric_text(self) -> str:
        return "\n".join(f"- {points}: {what}" for points, what in self.rubric)


QUESTIONS: dict[str, tuple[Question, ...]] = {
    "00": (
        Question(
            "00-a",
            "Which of the things that you saw in this notebook would you not believe without another measurement, and "
            "which measurement would it be?",
            (
                (1, "names one result of the notebook, with its number"),
                (1, "says what might have made it so other than what the notebook says"),
                (1, "describes a measurement whose outcome would tell the two apart"),
            ),
        ),
    ),
    "01": (
        Question(
            "01-a",
            "NF4 is called optimal for normally distributed weights. Say in what sense it is, and name a case from "
            "this notebook, with its numbers, in which another table of 16 levels does better.",
            (
                (1, "says that blocks are scaled by their absmax, so that what is coded is no longer normal"),
                (1, "names what is measured: squared error, magnitude of error, or how evenly codes are used"),
                (1, "gives a case with the numbers the notebook printed"),
                (1, "says why that table does better there"),
            ),
        ),
    ),
    "02": (
        Question(
            "02-a",
            "Double quantization saves less than half a bit for each weight. Argue for or against it for a model of 7 "
            "billion parameters on a GPU of 8 GB.",
            (
                (1, "states the saving in bits per weight and in GB for this model"),
                (1, "compares it with what else must fit: adapters, optimizer, activations"),
                (1, "says what it costs, in error or in time, with a number of the notebook"),
                (1, "decides, and the decision follows from the numbers"),
            ),
        ),
    ),
    "03": (
        Question(
            "03-a",
            "A colleague proposes rank 512 for every layer, to be on the safe side. What do you answer?",
            (
                (1, "computes the share of trained parameters at that rank for a layer of the notebook"),
                (1, "names the rank from which an adapter is no longer smaller than its weight"),
                (1, "says what a lower rank loses, from the singular values of a real update"),
                (1, "names a measurement that would settle it"),
            ),
        ),
    ),
    "04": (
        Question(
            "04-a",
            "When does a paged optimizer help, when does it do nothing, and when does it only hide that a model does "
            "not fit?",
            (
                (1, "nothing is saved and nothing moved where all state fits"),
                (1, "helps at short peaks, whose length is small against a step"),
                (1, "hides: each step moves the pages in and out, with the bytes counted in the notebook"),
            ),
        ),
    ),
    "05": (
        Question(
            "05-a",
            "Suppose that this notebook's bill is one gigabyte above what your GPU has. Which of its terms would you "
            "change first, and what does that cost?",
            (
                (1, "orders the terms by their size, with numbers"),
                (1, "picks one that can be changed without another model"),
                (1, "states what the change costs, in time or in quality"),
                (1, "computes that it fits then"),
            ),
        ),
    ),
    "06": (
        Question(
            "06-a",
            "Exact match rose. Describe an error that the tuned model makes and the base model does not, and how you "
            "would find out how frequent it is.",
            (
                (1, "shows such an answer, or says how it was searched for and not found"),
                (1, "says which step of the training could have caused it"),
                (1, "describes a test set and a count, with an interval"),
            ),
        ),
        Question(
            "06-b",
            "Graduation. Run `qlora-lab graduate`, or the notebook's last section, and paste its table. Which of the "
            "pieces did you have to correct, what had been wrong with it, and how would the losses have shown it?",
            (
                (1, "the table: how many pieces are the student's own, and that the losses equal the package's"),
                (1, "right answers before and after, and that PEFT gives the same answers"),
                (1, "names a piece and what was wrong with it, or how it was made sure that nothing was"),
                (1, "says what the losses would have looked like with that mistake"),
            ),
        ),
    ),
    "07": (
        Question(
            "07-a",
            "Take the comparison of two ranks, data types or methods that you find most doubtful. What would another "
            "ten seeds change, and what would they not change?",
            (
                (1, "names the comparison, with its interval from the notebook"),
                (1, "estimates the width of the interval with ten more seeds"),
                (1, "names something that seeds do not cover: the task, the learning rate, the test commands"),
                (1, "describes an experiment for that"),
            ),
        ),
    ),
    "08": (
        Question(
            "08-a",
            "Two GPUs instead of one: for which of time, memory and batch size would you spend the second one here, "
            "and what limits each?",
            (
                (1, "memory: what is cut, and what every GPU still has whole"),
                (1, "time: the bytes on the wire for each step"),
                (1, "batch size: that the same result needs gradients weighted by tokens"),
            ),
        ),
    ),
    "09": (
        Question(
            "09-a",
            "Somebody trained an adapter on forty examples, reports a training loss of 0.01, and says that it answers "
            "nonsense where it runs. What do you ask to see, in which order, and what would each of it tell you?",
            (
                (1, "the validation loss and its curve, and what a rise of it means"),
                (1, "which tokens are learned: the mask of one example, its end and its padding"),
                (1, "on which base it runs, and on which it was trained"),
                (1, "orders the questions so that what is cheap to look at comes first"),
            ),
        ),
    ),
    "10": (
        Question(
            "10-a",
            "A vendor offers a 4-bit format with half of NF4's error of the weights, and an adapter that beats LoRA by "
            "two percent. Which measurements do you ask for before you believe either, and what would each rule out?",
            (
                (1, "format: all bits counted, scales and blocks included"),
                (1, "format: the error of outputs or the loss, on text that the method has not looked at"),
                (1, "adapter: a learning rate chosen for both alike, with the same seeds, and the interval"),
                (1, "names a result of the notebook in which an error and what came of it go different ways"),
            ),
        ),
    ),
}
