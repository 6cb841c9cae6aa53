"""A report over scripted answers to the bundled ViGGO records: every section, any size, without a model or data set.

    python -m benchmarks.sample_report OUT [--items 500] [--rows 12]

The answers are gold ones that a seeded script spoils at a stated rate (another order, a value lost, prose around the
function ...): input for looking at the page and for timing it. They say nothing about any model.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tasks
from evaluation.compare import compare
from evaluation.comparison import Entry
from evaluation.predictions import Prediction, write_predictions
from tasks.base import Record
from tasks.sources import load
from tasks.viggo_form import Representation, parse

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \u202e"


@dataclass(frozen=True, slots=True)
class Script:
    """One row: how often which fault is made, and what is said of how the row came about."""

    label: str
    faults: dict[str, float]
    details: dict[str, Any]
    per_line: dict[str, float] = field(default_factory=dict)


def scripts() -> list[Script]:
    """Base at k shots, an API model, tuned models by rows and seed, the tuned model under another prompt."""
    base = {"role": "base", "model": "base-135m", "prompt": "natural", "workers": 2}
    tuned = {"role": "tuned", "setting": "a1b2c3", "prompt": "structured", "shots": 0, "workers": 2}
    api = {"role": "other", "model": "openai:gpt-x", "prompt": "natural", "shots": 9}
    rows = [
        Script(
            f"base-{shots}shot",
            {"prose": 0.9 / (1 + shots), "function": 0.5 / (1 + shots / 4), "drop": 0.5, "order": 0.3},
            base | {"shots": shots, "seconds": 200.0 + 20 * shots},
        )
        for shots in (0, 1, 2, 4, 8)
    ]
    rows.append(
        Script("gpt-x", {"order": 0.42, "value": 0.08, "drop": 0.03}, api, {"cost_usd": 0.0041, "latency_s": 1.1})
    )
    sizes = ((500, 1), (1000, 1), (2500, 1), (5000, 1), (5000, 2))
    for size, seed in sizes:
        rate = 30 / size**0.7
        facts = {"training_rows": size, "seed": seed, "seconds": 55.0, "worker_hours": size / 4000}
        faults = {"value": rate, "drop": rate / 2, "order": rate / 8}
        rows.append(Script(f"tuned-{size}-seed{seed}", faults, tuned | facts))
    last = rows[-1]
    plain = Script("tuned-natural", {"prose": 0.3, "value": 0.2}, last.details | {"prompt": "natural"})
    return [*rows[:-1], plain, last]


def spoil(gold: str, fault: str, rng: random.Random) -> str:
    """The gold representation with one fault."""
    found = parse(gold)
    slots = list(found.slots)
    if fault == "prose":
        return rng.choice([f"Sure! Here it is: {gold}", "The game is great and I like it.", "", HOSTILE + gold])
    if fault == "function":
        return str(Representation("inform" if found.function != "inform" else "confirm", tuple(slots)))
    if fault == "order":
        rng.shuffle(slots)
    elif fault == "drop" and len(slots) > 1:
        del slots[rng.randrange(len(slots))]
    elif fault == "value" and slots:
        place = rng.randrange(len(slots))
        slots[place] = (slots[place][0], slots[place][1] + " deluxe")
    return str(Representation(found.function, tuple(slots)))


def answers(script: Script, records: list[Record], seed: int) -> Iterator[Prediction]:
    """One answer per record; a fault of several takes the first that the dice choose."""
    rng = random.Random(seed)
    for record in records:
        gold = str(record["mr"])
        text = next((spoil(gold, name, rng) for name, rate in script.faults.items() if rng.random() < rate), gold)
        shots = int(script.details["shots"])
        extra = {name: round(value * rng.lognormvariate(0, 0.25), 5) for name, value in script.per_line.items()}
        asked = 40 + 60 * shots + (300 if script.details["prompt"] == "natural" else 0)
        yield Prediction(record.id, text, prompt_tokens=asked, completion_tokens=len(text) // 4, extra=extra)


def main(out: Path, items: int, rows: int) -> Path:
    """Writes predictions and the report, says how long the report took; returns the page."""
    task = tasks.get("viggo")
    source = itertools.cycle(load(task, "test", "bundled"))
    records = [Record(f"viggo-test-{place}", next(source).fields) for place in range(items)]
    entries = []
    for seed, script in enumerate(scripts()[-rows:]):
        path = out / "predictions" / f"{script.label}.jsonl"
        write_predictions(path, answers(script, records, seed))
        entries.append(Entry(script.label, path, details=script.details))
    started = time.perf_counter()
    compare(
        entries,
        task=task,
        records=records,
        out=out / "report",
        title="Scripted answers to bundled ViGGO records",
        loss_curve=[{"step": step, "loss": 2.5 / step**0.6} for step in range(1, 200)],
        provenance={
            "git_sha": "0000000",
            "note": "no model was run",
            "config": {"task": "viggo", "train": {"seed": 1}},
        },
        source="bundled",
        split="test",
        leaks={record.id: "the same sentence stands in train" for record in records[3 : items // 10 : 7]},
        usd_per_worker_hour=1.20,
    )
    page = out / "report" / "report.html"
    spent = time.perf_counter() - started
    print(f"{page}: {items} items x {len(entries)} rows, {page.stat().st_size / 1e6:.2f} MB, written in {spent:.1f} s")
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rows", type=int, default=12)
    given = parser.parse_args()
    main(given.out, given.items, given.rows)
