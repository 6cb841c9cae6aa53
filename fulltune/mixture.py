"""Several prepared sources as one training set: how many examples of each part, and which.

    token tables + counts or weights -> rows.npy (n, 3: part, row, copy) + lengths.npy + manifest.json -> TokenTable

Nothing is copied: a mixture names rows of its parts, so parts are prepared once and shared between mixtures. What it
holds is a function of the parts, their counts or weights, and the seed; the order in which it is trained on is the
epoch's permutation, as for a single source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fulltune import data
from fulltune.config import MixturePart
from fulltune.data import LISTED, REASONS, TokenTable


def takes(sizes: Sequence[int], parts: Sequence[MixturePart]) -> list[int]:
    """How many examples of each part one epoch holds.

    A part with `count` gives exactly so many. Parts with `weight` share as many examples as they hold together, in
    proportion to their weights (largest remainders, so that the sum is exact). A part with neither gives each of its
    rows once.

    Args:
        sizes: examples that each part has.
    """
    taken = [part.count or size for part, size in zip(parts, sizes, strict=True)]
    weighted = [(i, part.weight) for i, part in enumerate(parts) if part.weight is not None]
    together = sum(sizes[i] for i, _ in weighted)
    whole = sum(weight for _, weight in weighted)
    exact = {i: together * weight / whole for i, weight in weighted}
    for i, value in exact.items():
        taken[i] = int(value)
    missing = together - sum(taken[i] for i in exact)
    for i in sorted(exact, key=lambda i: (taken[i] - exact[i], i))[:missing]:
        taken[i] += 1
    return taken


def pick(size: int, wanted: int, *, seed: int, part: int) -> np.ndarray:
    """The rows that make up `wanted` examples of a part and which copy each is: (wanted, 2).

    Every row comes equally often, up to one: whole rounds first, then a seeded choice for what is left.
    """
    rounds, rest = divmod(wanted, size)
    rows = [np.tile(np.arange(size), rounds)]
    if rest:
        order = np.random.Generator(np.random.Philox([seed, part])).permutation(size)
        rows.append(np.sort(order[:rest]))
    chosen = np.concatenate(rows)
    return np.stack([chosen, np.arange(wanted) // size], axis=1).astype(np.int64)


def combine(tables: Sequence[TokenTable], parts: Sequence[MixturePart], *, seed: int, cache: Path) -> TokenTable:
    """The mixture as a table of its own, found or made; the parts' folders lie in the same cache."""
    taken = takes([len(table) for table in tables], parts)
    names = [table.folder.name for table in tables]
    key = hashlib.sha256(json.dumps([data.FORMAT, names, taken, seed]).encode()).hexdigest()[:16]
    folder = cache / f"mixture-train-{key}"
    if not data.is_written(folder):
        picked = [
            pick(len(table), n, seed=seed, part=i) for i, (table, n) in enumerate(zip(tables, taken, strict=True))
        ]
        with data.staged(folder) as stage:
            _write(stage, tables, picked)
    return TokenTable(folder)


def _write(stage: Path, tables: Sequence[TokenTable], picked: Sequence[np.ndarray]) -> None:
    rows = np.concatenate([np.insert(chosen, 0, i, axis=1) for i, chosen in enumerate(picked)])  # (n, 3)
    counts = np.concatenate([_counts(table)[chosen[:, 0]] for table, chosen in zip(tables, picked, strict=True)])
    np.save(stage / "rows.npy", rows)
    np.save(stage / "lengths.npy", counts)
    seen: list[str] = []
    described = []
    for table, chosen in zip(tables, picked, strict=True):
        described.append(_part(table, chosen, mark=f"@{len(seen) + 1}" if table.manifest["task"] in seen else ""))
        seen.append(table.manifest["task"])
    left_out = {reason: _together([table.manifest["left_out"][reason] for table in tables]) for reason in REASONS}
    manifest = {"split": "train", **data.totals(counts), "left_out": left_out, "parts": described}
    (stage / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _counts(table: TokenTable) -> np.ndarray:
    return np.stack([table.lengths, table.supervised], axis=1)  # (n, 2)


def _part(table: TokenTable, chosen: np.ndarray, *, mark: str) -> dict[str, Any]:
    """`mark` sets the ids of a part apart from those of an earlier part of the same task."""
    size = len(table)
    return {
        "folder": table.folder.name,
        "task": table.manifest["task"],
        "mark": mark,
        "examples": size,
        "taken": len(chosen),
        "repeated": max(0, len(chosen) - size),
        "unused": max(0, size - len(chosen)),
    }


def _together(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "total": sum(entry["total"] for entry in entries),
        "first": [row for entry in entries for row in entry["first"]][:LISTED],
    }
