"""The reader's pieces: theirs where they are kept, else the finished ones; the board of all of them."""

import pytest

import qlora_lab.mine
from qlora_lab.checks import EXERCISES, kept


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(kept.PLACE, str(tmp_path))
    return tmp_path


def test_finished_until_it_is_written(folder):
    assert qlora_lab.mine.decode is EXERCISES["decode"].solution and not qlora_lab.mine.is_mine("decode")
    (folder / "decode.py").write_text("def decode(code, low, high):\n    return 'mine'\n")
    from qlora_lab.mine import decode

    assert decode(0, 0, 0) == "mine" and qlora_lab.mine.is_mine("decode")


def test_whose(folder):
    (folder / "decode.py").write_text("def decode(code, low, high):\n    return 'mine'\n")
    first, second = qlora_lab.mine.whose("decode", "evict").splitlines()
    assert "yours, my_qlora/decode.py" in first and "finished; yours comes from notebook 04" in second


def test_the_board_counts_all(folder):
    board = qlora_lab.mine.board()
    assert board.total == len(EXERCISES) and board.done == 0
    (folder / "evict.py").write_text("")
    board = qlora_lab.mine.board()
    assert board.done == 1 and board.rows["04"]["evict"] and "✓ evict" in str(board)
    assert str(board.total) in board._repr_mimebundle_()["text/html"]


def test_unknown_names():
    with pytest.raises(AttributeError, match="no exercise asks for"):
        qlora_lab.mine.unheard_of  # noqa: B018
    with pytest.raises(ValueError, match="no exercise 'unheard-of'"):
        qlora_lab.mine.piece("unheard-of")
