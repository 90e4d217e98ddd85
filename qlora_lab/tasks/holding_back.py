"""Examples held back for validation: a share of the data, drawn by a seed.

Examples that ask the same, up to digits, case and white space, stay on the same side: else what was trained on would be
validated, and the loss be too good.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import torch

from qlora_lab.tasks.function_calls import Example


def hold_back(records: Sequence, share: float, seed: int = 0) -> tuple[list, list]:
    """(what to train on, what was held back), both in the order of `records`.

    About `share` of the records are held back, one at least; a question that comes often is held back with all of its
    answers, or not at all.

    Raises:
        ValueError: there are too few different questions.
    """
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(asked(record), []).append(place)
    if len(groups) < 2:
        raise ValueError(
            f"{len(records)} examples with {len(groups)} different question cannot be split; give a file of others as "
            "validation (--validation), or train without (--validation-share 0)"
        )
    wanted, kept_back = max(1, round(share * len(records))), set()
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    members = list(groups.values())
    for number in order[:-1]:  # one stays to train on
        if len(kept_back) + len(members[number]) <= wanted or not kept_back:
            kept_back.update(members[number])
        if len(kept_back) >= wanted:
            break
    train = [record for place, record in enumerate(records) if place not in kept_back]
    return train, [records[place] for place in sorted(kept_back)]


def asked(record: Any) -> str:
    """The question of a record, or its text, without what makes no difference: digits, case, white space."""
    if isinstance(record, Example):
        text = record.command
    elif record.messages is not None:
        last = record.messages[-1].get("role") == "assistant" and len(record.messages) > 1
        text = json.dumps(record.messages[:-1] if last else record.messages, ensure_ascii=False, sort_keys=True)
    elif record.text is not None:
        text = record.text
    else:
        text = f"{record.prompt}\n{record.input or ''}"
    return " ".join(re.sub(r"\d", "0", text.casefold()).split())
