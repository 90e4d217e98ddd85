"""Exercise of notebook 01 about testing: inputs that break three plausible quantizers."""

import torch

from qlora_lab.checks.exercise import Exercise, Misconception
from qlora_lab.quantization.datatypes import get_datatype

NF4 = get_datatype("nf4").table()


def _midpoints(levels: torch.Tensor) -> torch.Tensor:
    return (levels[1:] + levels[:-1]) / 2


def codes_of(block: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The right version, of which each of the following has lost a part."""
    scale = block.abs().max()
    x = block / scale if scale > 0 else block
    return (x[:, None] > _midpoints(levels)).sum(1)


def _without_abs(block: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    scale = block.max()
    x = block / scale if scale > 0 else block
    return (x[:, None] > _midpoints(levels)).sum(1)


def _ties_upwards(block: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    scale = block.abs().max()
    x = block / scale if scale > 0 else block
    return (x[:, None] >= _midpoints(levels)).sum(1)


def _unguarded(block: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    x = block / block.abs().max()
    return (x[:, None] > _midpoints(levels)).sum(1)


BUGS = (_without_abs, _ties_upwards, _unguarded)


def counterexamples(levels: torch.Tensor) -> list[torch.Tensor]:
    negative, tie, zero = torch.zeros(16), torch.zeros(16), torch.zeros(16)
    negative[:2] = torch.tensor([0.5, -1.0])
    tie[0], tie[1] = 1.0, _midpoints(levels)[9]
    return [negative, tie, zero]


def _exposed(arguments: tuple, result):
    """For each bug whether its block exposes it; what is no list of three is returned as it is."""
    (levels,) = arguments
    if not isinstance(result, list | tuple) or len(result) != 3:
        return result
    return [_is_block(block) and not torch.equal(bug(block, levels), codes_of(block, levels))
            for bug, block in zip(BUGS, result, strict=True)]  # fmt: skip


def _is_block(block) -> bool:
    good = isinstance(block, torch.Tensor) and block.shape == (16,) and block.dtype == torch.float32
    return good and bool(block.isfinite().all())


def _instead(place: int, block: torch.Tensor):
    def answer(levels):
        return [block if i == place else right for i, right in enumerate(counterexamples(levels))]

    return answer


def _levels_only(generator: torch.Generator, number: int):
    """NF4's levels, and others from -1 over an exact 0 to 1."""
    if number % 2 == 0:
        return (NF4.clone(),)
    low = -torch.rand(6, generator=generator) * 0.98 - 0.01
    high = torch.rand(7, generator=generator) * 0.98 + 0.01
    return (torch.cat((torch.tensor([-1.0, 0.0, 1.0]), low, high)).sort().values,)


def _which_blocks(_, exposed, expected) -> str | None:
    """Of blocks in places that no misconception is about."""
    if not isinstance(exposed, list) or len(exposed) != len(BUGS) or not all(isinstance(one, bool) for one in exposed):
        return None
    names = [name for name, one in zip(("first", "second", "third"), exposed, strict=True) if not one]
    hints = [str(number) for number, one in enumerate(exposed, 1) if not one]
    expose = f"{' and '.join(names)} block {'expose' if len(names) > 1 else 'exposes'}"
    return (
        f"Your {expose} nothing: the right version and the one with the bug give the same codes. Each block has to be "
        f"16 finite float32 numbers, in the place of its bug. Open hint {' and '.join(hints)}."
    )


_RANDOM = torch.randn(16, generator=torch.Generator().manual_seed(1))
_RANDOM_POSITIVE = torch.where(torch.arange(16) == 3, 3.0, _RANDOM)

EXERCISES = (
    Exercise(
        "counterexamples",
        _levels_only,
        counterexamples,
        (
            Misconception(
                "Your second block does not expose the tie. Random numbers never hit a midpoint: put one there. "
                "Open hint 2.",
                _instead(1, _RANDOM),
            ),
            Misconception(
                "Your first block does not expose the missing abs(): its largest magnitude has to be negative. "
                "Open hint 1.",
                _instead(0, _RANDOM_POSITIVE),
            ),
            Misconception(
                "Your third block does not expose the division: when does it have no result? Open hint 3.",
                _instead(2, _RANDOM),
            ),
            Misconception(
                "Your second and third block expose nothing: random numbers do not find these bugs. Open hints 2, 3.",
                lambda levels: [counterexamples(levels)[0], _RANDOM, _RANDOM],
            ),
            Misconception(
                "None of your blocks exposes its bug. Give three tensors of 16 finite float32 numbers, in the order of "
                "the three versions. Open hint 1.",
                lambda levels: [_RANDOM_POSITIVE] * 3,
            ),
        ),
        view=_exposed,
        describe=_which_blocks,
    ),
)
