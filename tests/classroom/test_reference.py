"""The teacher's guide is in step with the package."""

import inspect
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qlora_lab.checks import EXERCISES
from qlora_lab.classroom.questions import QUESTIONS
from qlora_lab.classroom.reference import misconceptions, reference
from qlora_lab.classroom.release import notebooks_folder
from qlora_lab.cli.commands import app

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "teaching.md"


def test_the_reference_is_what_the_command_writes():
    """If it is not: qlora-lab classroom reference"""
    written = (ROOT / "docs" / "teaching_reference.md").read_text()
    assert written == reference(sorted(notebooks_folder(ROOT / "notebooks").glob("*.ipynb")))


def test_every_exercise_has_its_misconceptions_in_it():
    text = reference([])
    for exercise in EXERCISES.values():
        found = misconceptions(exercise)
        assert found and {m.message for m in exercise.misconceptions} == set(found)
        assert f"**{exercise.id}**" in text and inspect.getsource(exercise.solution) in text
        for message, lines in found.items():
            assert f"- {message}" in text and all(f"`{line}`" in text for line in lines)


def test_every_notebook_with_exercises_has_times_and_an_open_question():
    for path in notebooks_folder(ROOT / "notebooks").glob("*.ipynb"):
        if '"exercise"' in path.read_text():
            assert QUESTIONS[path.stem[:2]], path.stem
    ids = [question.id for questions in QUESTIONS.values() for question in questions]
    assert len(ids) == len(set(ids)) and all(id.startswith(n) for n, qs in QUESTIONS.items() for id in [qs[0].id])


def test_the_commands_of_the_guide_are_there():
    text = GUIDE.read_text()
    used = re.findall(
        r"^(?:#.*)?(qlora-lab [^\n#]+)", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)), re.M
    )
    used += re.findall(r"`(qlora-lab [^`]+)`", text)
    assert len(used) >= 4
    for line in used:
        words = line.split()[1:]
        command = words[: 2 if words[0] == "classroom" else 1]
        if len(command) == 2 or command != ["classroom"]:
            shown = CliRunner().invoke(app, [*command, "--help"], terminal_width=200)
            assert shown.exit_code == 0, line
            for option in re.findall(r"--[\w-]+", line):
                assert option in shown.output, line


@pytest.mark.parametrize("option", ["--no-hints", "--questions", "--seed"])
def test_options_of_release_that_the_guide_names(option):
    shown = CliRunner().invoke(app, ["classroom", "release", "--help"], terminal_width=200).output
    assert f"`{option}`" in GUIDE.read_text() and option in shown


def test_the_limits_that_the_guide_states():
    from qlora_lab.classroom.archives import LARGEST
    from qlora_lab.classroom.inside.masking import NAMES
    from qlora_lab.classroom.sandbox import PATIENCE, SECONDS

    text = GUIDE.read_text()
    assert (
        f"{SECONDS:g} seconds of processor time, {SECONDS * PATIENCE:g} by the clock" in text
        and "1 GB; `--seconds` and `--memory`" in text
    )
    assert f"{LARGEST // 2**20} MiB at most" in text
    for name in ("qlora_lab", "bitsandbytes", "PEFT", "torchao", "transformers"):
        assert name in text and name.lower() in NAMES


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)\s]+)\)", GUIDE.read_text()):
        assert target.startswith("https://") or (GUIDE.parent / target.partition("#")[0]).exists(), target
    assert "(docs/teaching.md)" in (ROOT / "README.md").read_text()
