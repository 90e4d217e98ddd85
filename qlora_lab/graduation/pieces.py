"""The pieces that a graduation is made of: what each does, whose it is, and that it is right."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

from qlora_lab import mine
from qlora_lab.checks import function_name, verdict
from qlora_lab.machine.errors import UserFacingError

PIECES = {  # by the exercise that asks for it, in the order in which they are used
    "normal-float": "the sixteen levels of NF4",
    "block-absmax": "a scale for each block of 64 weights",
    "nearest-code": "the code of each weight",
    "pack-nibbles": "two codes in a byte",
    "double-quantize": "the scales in 8 bits",
    "decode-scales": "the scales back from 8 bits",
    "dequantize-packed": "the weights back from their codes",
    "find-targets": "which layers get an adapter",
    "replace-module": "the new layer in the place of the old",
    "build-labels": "which tokens are learned",
    "qlora-forward": "the layer: 4-bit base and adapter",
    "supervised-loss": "how wrong the answers are",
    "qlora-backward": "the adapter's gradients, through the base",
    "accumulate": "one gradient from two parts of a batch",
    "learning-rate": "how large each step is",
    "adamw-step": "the step",
    "train": "the loop around all of it",
    "calls-match": "whether an answer is right",
    "merge-adapter": "base and adapter in one weight again",
}


class WrongPiece(UserFacingError, ValueError):
    """A piece is not right. The message names it and says what it looks like."""


def gather(given: Mapping[str, Callable] | None = None) -> tuple[SimpleNamespace, dict[str, bool]]:
    """All pieces by their functions' names, each checked, and which of them are the reader's.

    Args:
        given: other functions for some exercises, by id; they count as the reader's.

    Raises:
        WrongPiece: one is not right, be it given or kept.
        ValueError: a function is given for what is no piece of this.
    """
    given = dict(given or {})
    if unknown := [name for name in given if name not in PIECES]:
        raise ValueError(f"{unknown[0]!r} is no piece of the graduation; the pieces are {', '.join(PIECES)}")
    found, own = {}, {}
    for exercise in PIECES:
        own[exercise] = exercise in given or mine.is_mine(exercise)
        try:
            function = given.get(exercise) or mine.piece(exercise)
        except ImportError as error:
            raise WrongPiece(f"{exercise}: {error}") from error
        if own[exercise] and (said := verdict(exercise, function)).status != "right":
            raise WrongPiece(f"the piece {exercise} is refused, so nothing was trained. {said.message}")
        found[function_name(exercise)] = function
    return SimpleNamespace(**found), own
