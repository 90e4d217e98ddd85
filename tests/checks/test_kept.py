"""What `check` gives back and keeps: right answers as files that stand alone, and a reason where one does not."""

import importlib
import inspect
import math

import pytest
import torch
from exercises import function_in, run, solution_of

from qlora_lab.checks import EXERCISES, PIECES, check, function_name, kept, verdict, verdict_card

HELPER = """
import math
import torch
import torch.nn.functional as F
from torch.special import ndtri
SIXTEEN = 16


def halves(codes):
    return codes[::2], codes[1::2]


def alone(codes: torch.Tensor) -> torch.Tensor:
    codes = F.pad(codes, (0, len(codes) % 2), value=7)
    return (codes[::2] << 4) | codes[1::2]


def uses_a_constant(codes):
    codes = F.pad(codes, (0, len(codes) % 2), value=7)
    return codes[::2] * SIXTEEN + codes[1::2]


def uses_a_function(codes):
    high, low = halves(F.pad(codes, (0, len(codes) % 2), value=7))
    return (high << 4) | low


def uses_a_default(codes, filler=SIXTEEN - 9):
    codes = F.pad(codes, (0, len(codes) % 2), value=filler)
    return (codes[::2] << 4) | codes[1::2]


@torch.no_grad()
def decorated(codes):
    codes = F.pad(codes, (0, len(codes) % 2), value=7)
    return (codes[::2] << 4) | codes[1::2]


def wrong(codes):
    return codes
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    folder = tmp_path / "pieces"
    monkeypatch.setenv(kept.PLACE, str(folder))
    return folder


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Functions written in a file, each of which can be given as `pack_nibbles`."""
    (tmp_path / "written.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("written")

    def give(name):
        source = inspect.getsource(getattr(module, name)).replace(f"def {name}(", "def pack_nibbles(")
        path = tmp_path / f"{name}.py"
        path.write_text(HELPER + "\n\n" + source)
        namespace = dict(vars(module))
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        return namespace["pack_nibbles"]

    yield give
    importlib.sys.modules.pop("written")


def test_a_right_answer_comes_back_and_is_kept(mine, answers, capsys):
    answer = answers("alone")
    assert check("pack-nibbles", answer) is answer
    assert "right. Compared on" in capsys.readouterr().out
    text = (mine / "pack_nibbles.py").read_text()
    assert "import torch\n" in text and "import torch.nn.functional as F\n" in text and "import math" not in text
    loaded = kept.load("pack_nibbles")
    assert verdict("pack-nibbles", loaded).status == "right"
    assert importlib.import_module("qlora_lab.mine").pack_nibbles(
        torch.tensor([1, 2, 3], dtype=torch.uint8)
    ).tolist() == [18, 55]


@pytest.mark.parametrize(
    ("name", "leans_on"), [("uses_a_constant", "SIXTEEN"), ("uses_a_function", "halves"), ("uses_a_default", "SIXTEEN")]
)
def test_an_answer_that_leans_on_something_is_right_and_told_so(mine, answers, capsys, name, leans_on):
    answer = answers(name)
    assert check("pack-nibbles", answer) is answer
    said = capsys.readouterr().out
    assert "right. Compared on" in said and f"Not kept in my_qlora: it uses `{leans_on}`" in said
    assert not mine.exists()


def test_a_decorator_stays_with_its_function(mine, answers, capsys):
    answer = answers("decorated")
    assert check("pack-nibbles", answer) is answer and "Kept as" in capsys.readouterr().out
    text = (mine / "pack_nibbles.py").read_text()
    assert "@torch.no_grad()\ndef pack_nibbles(" in text and "import torch\n" in text


def test_a_wrong_answer_gives_the_finished_version(mine, answers, capsys):
    answer = answers("wrong")
    given = check("pack-nibbles", answer)
    assert given is not answer and verdict("pack-nibbles", EXERCISES["pack-nibbles"].solution).status == "right"
    assert given(torch.tensor([1, 2], dtype=torch.uint8)).tolist() == [18]
    assert "wrong." in capsys.readouterr().out and not mine.exists()


def test_the_finished_version_is_never_taken_for_an_answer(mine, answers, capsys):
    """A check cell run twice, or a hidden test after it, judges what the reader wrote."""
    given = check("pack-nibbles", answers("wrong"))
    first = capsys.readouterr().out
    assert verdict("pack-nibbles", given).status == "wrong"
    again = check("pack-nibbles", given)
    assert capsys.readouterr().out == first and again.stands_for is given.stands_for and not mine.exists()


def test_a_kept_answer_is_replaced_by_a_newer_right_one_only(mine, answers):
    check("pack-nibbles", answers("alone"))
    before = (mine / "pack_nibbles.py").read_text()
    check("pack-nibbles", answers("wrong"))
    assert (mine / "pack_nibbles.py").read_text() == before


def test_a_lambda_and_the_package_itself_are_not_kept(mine, capsys):
    check("decode", lambda code, low, high: low + (high - low) * code / 15)
    assert "Not kept" in capsys.readouterr().out

    class Decode:
        def __call__(self, code, low, high):
            return low + (high - low) * code / 15

    check("decode", Decode())
    assert "Not kept in my_qlora: it has to be written as `def decode(…):`" in capsys.readouterr().out

    check("pack-nibbles", EXERCISES["pack-nibbles"].solution)  # its source is here, its names are the package's
    check("nearest-code", EXERCISES["nearest-code"].solution)
    assert "uses `_midpoints`" in capsys.readouterr().out


def test_a_broken_file_is_told_by_its_path(mine):
    mine.mkdir()
    (mine / "decode.py").write_text("def decode(:")
    with pytest.raises(ImportError, match=r"decode\.py: SyntaxError"):
        importlib.import_module("qlora_lab.mine").piece("decode")


@pytest.mark.parametrize("exercise", EXERCISES)
def test_every_solution_of_the_notebooks_stands_alone(mine, exercise, tmp_path, capsys):
    """But for those that use a piece of the reader's, which comes from `qlora_lab.mine` then."""
    name = function_name(exercise)
    path = tmp_path / f"{name}_answer.py"
    path.write_text("import math\nimport torch\n\n\n" + solution_of(exercise))
    namespace = {"math": math, "torch": torch}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    answer = namespace[name]
    assert check(exercise, answer) is answer
    assert "Kept as my_qlora/" in capsys.readouterr().out
    assert function_in(run((mine / f"{name}.py").read_text()), exercise)


def test_where_the_pieces_lie(tmp_path, monkeypatch):
    monkeypatch.delenv(kept.PLACE)
    book = tmp_path / "notebooks"
    (book / "deep").mkdir(parents=True)
    (book / "00_start_here.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert kept.folder() == book / "my_qlora"  # from the checkout's folder: beside the notebooks
    monkeypatch.chdir(book)
    assert kept.folder() == book / "my_qlora"
    (book / "my_qlora").mkdir()
    monkeypatch.chdir(book / "deep")
    assert kept.folder() == book / "my_qlora"  # the nearest one above


def test_the_card_says_the_same_and_escapes():
    found = verdict("evict", lambda *_: "<b>")
    card = verdict_card.card(found, "The cells below use `that`.")
    assert "&lt;b&gt;" in card and "<b>'" not in card and "<code>that</code>" in card and "not yet" in card


def test_pieces_are_named_as_python_names_them():
    assert {function_name(name) for name in EXERCISES} == PIECES and all(name.isidentifier() for name in PIECES)
