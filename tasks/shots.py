"""Chooses the worked examples of a few-shot prompt: the same ones wherever a task is prompted or shown.

Stands between `tasks.sources.load` and `task.baseline_prompt`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tasks.base import Record, Task, UserError

SHOT_SEED = 17  # which training rows serve as worked examples


def pick(task: Task, train: Sequence[Record], asked: Sequence[Record], count: int) -> list[Record]:
    """`count` training records, chosen by seed; none whose question is asked as well.

    Raises:
        UserError: fewer than `count` such records.
    """
    questions = {task.structured_prompt(record) for record in asked} if count else set()
    pool = [record for record in train if task.structured_prompt(record) not in questions] if count else []
    if len(pool) < count:
        raise UserError(
            got=f"{len(pool)} training rows that are not asked as well",
            wanted=f"{count} worked examples",
            fix="lower --shots",
        )
    return random.Random(SHOT_SEED).sample(pool, count)
