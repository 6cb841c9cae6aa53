"""Worked examples for few-shot prompts: chosen by seed from the training rows, never one that is asked as well."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tasks.base import Record, Task, UserError

SEED = 17  # which training rows serve as worked examples


def pick(task: Task, count: int, train: Sequence[Record], asked: Sequence[Record]) -> list[Record]:
    """`count` training rows, none of whose inputs is among those that are asked.

    Raises:
        UserError: there are not that many.
    """
    inputs = {task.structured_prompt(record) for record in asked}
    pool = [record for record in train if task.structured_prompt(record) not in inputs]
    if len(pool) < count:
        raise UserError(
            got=f"{len(pool)} training rows that are not among the rows to predict",
            wanted=f"{count} worked examples",
            fix="lower --shots",
        )
    return random.Random(SEED).sample(pool, count)
