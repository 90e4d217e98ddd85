"""Notebook 06, at its end: the default model quantized, adapted and fine-tuned by the reader's pieces alone.

Read `fine_tune` first: a page that puts the pieces together and holds none of the package's arithmetic. `pieces` says
which they are, checks each, and names one that is wrong. `proof` compares with the package, step by step, and PEFT.
"""

from qlora_lab.graduation.fine_tune import Recipe
from qlora_lab.graduation.pieces import PIECES, WrongPiece, gather
from qlora_lab.graduation.proof import Graduation, graduate

__all__ = ["PIECES", "Graduation", "Recipe", "WrongPiece", "gather", "graduate"]
