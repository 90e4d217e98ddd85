"""General text among one's own examples, against forgetting: what is trained on nothing else loses some of the rest.

Counted are learned tokens, which are what the gradient sees: a page of text has as many as fifty short answers.
"""

from collections.abc import Sequence

import torch

SHORTEST = 64  # tokens of a piece of text, where one's own examples are shorter still


def mixed(
    encoded: Sequence[tuple[torch.Tensor, torch.Tensor]],
    texts: Sequence[tuple[torch.Tensor, torch.Tensor]],
    share: float,
    seed: int = 0,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`encoded`, and as many pieces of `texts` that `share` of all learned tokens are theirs.

    Pieces are as long as the longest example (and at least `SHORTEST` tokens), drawn in an order that the seed decides;
    where there are too few, they come again.

    Raises:
        ValueError: the texts have no two tokens to learn from.
    """
    own = sum(_learned(labels) for _, labels in encoded)
    size = max(SHORTEST, *(len(ids) for ids, _ in encoded))
    pieces = [piece for ids, _ in texts for piece in ids.split(size) if len(piece) > 1]
    pieces = [piece for piece in pieces if len(piece) > size // 2] or pieces
    if not pieces:
        raise ValueError("the text to be mixed in has no two tokens to learn from")
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed)).tolist()
    wanted, found, added = own * share / (1 - share), 0, []
    while found < wanted or not added:
        piece = pieces[order[len(added) % len(order)]]
        added.append((piece, piece.clone()))
        found += len(piece) - 1
    return [*encoded, *added]


def _learned(labels: torch.Tensor) -> int:
    return int((labels[1:] >= 0).sum())
