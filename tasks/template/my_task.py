"""my_task: from an order in plain words to `item=...; quantity=...; city=...`.

One file says everything about the task: its record, the text a model is trained on, the
prompt for models that were not tuned, how an answer is read and judged, and rows to try
it on. Keep what fits and change the rest; `my_task.json` holds rows and answers with the
verdict you expect, and the version pin.

    text   Please send 12 oak chairs to Lisbon.
    facts  item=oak chairs; quantity=12; city=Lisbon
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from tasks.base import Completion, Metric, Record, Score, Segment, Task

KEYS = ("item", "quantity", "city")

# Each is one token of the vocabulary, so a tuned model cannot confuse them with text.
START_Q, END_Q, START_A, END_A = "<START_Q>", "<END_Q>", "<START_A>", "<END_A>"

METRICS = (
    Metric("facts", "every key with the right value, and no other", headline=True),
    Metric("pairs", "share of the reference's pairs that are right", kind="fraction"),
    Metric("parsable", "key=value pairs and nothing else"),
    Metric("format_violation", "breaks the form", higher_is_better=False),
)

# The first that applies is the category of an answer.
ERRORS = {
    "empty": "nothing but white space",
    "truncated": "cut off by the token limit before it became whole",
    "not_pairs": "not key=value; key=value and nothing else",
    "unknown_key": "a key that is not one of the three",
    "missing_key": "a key of the reference is not there",
    "wrong_value": "every key is there, but one has another value",
}
FORMAT_ERRORS = frozenset({"empty", "truncated", "not_pairs", "unknown_key"})


def render(record: Record) -> tuple[Segment, ...]:
    """Training text: the question without loss, then the answer and the stop token."""
    question = f"{START_Q}{record['text']}{END_Q}{START_A}"
    answer = f"{record['facts']}{END_A}"
    return Segment(question, loss=False), Segment(answer, loss=True)


def reference(record: Record) -> str:
    """What a perfect model would answer."""
    return str(record["facts"])


_INSTRUCTION = """\
Read an order and write its facts as key=value pairs on one line, separated by a \
semicolon and a space. The keys are item, quantity and city, in this order. Write the \
quantity in digits. Answer with the pairs only."""


def baseline_prompt(record: Record, shots: Sequence[Record] = ()) -> str:
    """The task in words for a model that was not tuned: rules, examples, the order."""
    examples = (f"Order: {shot['text']}\nFacts: {shot['facts']}" for shot in shots)
    return "\n\n".join((_INSTRUCTION, *examples, f"Order: {record['text']}\nFacts:"))


def score(record: Record, completion: Completion) -> Score:
    """Judge one answer. Never raises, whatever the model wrote."""
    wanted, found = parse(reference(record)) or {}, parse(completion.text)
    error, why = _verdict(wanted, found, completion)
    right = sum((found or {}).get(key) == value for key, value in wanted.items())
    metrics = {
        "facts": float(error is None),
        "pairs": right / max(1, len(wanted)),
        "parsable": float(found is not None),
        "format_violation": float(error in FORMAT_ERRORS),
    }
    return Score(metrics, found, error, why)


def parse(text: str) -> dict[str, str] | None:
    """The pairs of an answer; None if it is anything else, or has a key twice."""
    pairs: dict[str, str] = {}
    for part in text.encode("utf-8", "replace").decode().strip().split(";"):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier() or key in pairs or "\n" in value:
            return None
        pairs[key] = value
    return pairs


def _verdict(
    wanted: Mapping[str, str],
    found: Mapping[str, str] | None,
    completion: Completion,
) -> tuple[str | None, str]:
    """The error category, and a sentence that says why."""
    if not completion.text.strip():
        return "empty", "the answer is empty"
    if found != wanted and completion.truncated:
        return "truncated", "the answer was cut off by the token limit"
    if found is None:
        return "not_pairs", "the answer is not key=value; key=value and nothing else"
    for key in found:
        if key not in KEYS:
            return "unknown_key", f"{key[:40]} is not one of {', '.join(KEYS)}"
    if missing := [key for key in wanted if key not in found]:
        return "missing_key", f"{', '.join(missing)} is missing"
    for key, value in wanted.items():
        if found[key] != value:
            return "wrong_value", f"{key} is {found[key][:40]!r}, not {value!r}"
    return None, "every key has the right value"


def accepts(record: Record) -> bool:
    """Whether a row can be used: its reference has exactly the three keys."""
    return tuple(parse(reference(record)) or ()) == KEYS


def label(record: Record) -> str:
    """The group whose sizes `fulltune tasks` shows."""
    return (parse(reference(record)) or {}).get("city", "none")


SIZES = {"train": 640, "valid": 64, "test": 64}
_ITEMS = (
    "brass lamps",
    "cotton shirts",
    "glass jars",
    "garden rakes",
    "oak chairs",
    "paper fans",
    "rain coats",
    "wool blankets",
)
_CITIES = ("Bergen", "Dakar", "Lima", "Lisbon", "Osaka", "Quito", "Riga", "Turin")
_FRAMES = (
    "Please send {quantity} {item} to {city}.",
    "{city} needs {quantity} {item}.",
    "We are short of {item} in {city}: {quantity} would do.",
    "Could you bring {quantity} {item} over to {city} by Friday?",
)


def generate(split: str) -> Iterator[dict[str, str]]:
    """Rows of source `bundled`, the same everywhere; no sentence is in two splits."""
    chance, seen = random.Random(7), set[str]()
    for name, size in SIZES.items():
        end = len(seen) + size
        while len(seen) < end:
            row = _row(chance)
            if row["text"] not in seen and name == split:
                yield row
            seen.add(row["text"])


def _row(chance: random.Random) -> dict[str, str]:
    facts = {
        "item": _ITEMS[int(chance.random() * len(_ITEMS))],
        "quantity": str(2 + int(chance.random() * 98)),
        "city": _CITIES[int(chance.random() * len(_CITIES))],
    }
    text = _FRAMES[int(chance.random() * len(_FRAMES))].format(**facts)
    return {"text": text, "facts": "; ".join(f"{k}={v}" for k, v in facts.items())}


TASK = Task(
    name="my_task",
    version="1",  # raise it with every change to a prompt, the training text or score
    description="an order in plain words -> item=...; quantity=...; city=...",
    columns=("text", "facts"),
    special_tokens=(START_Q, END_Q, START_A, END_A),
    stop=END_A,
    max_new_tokens=48,
    render=render,
    reference=reference,
    baseline_prompt=baseline_prompt,
    baseline_stop=("\n",),
    score=score,
    metrics=METRICS,
    errors=ERRORS,
    format_errors=FORMAT_ERRORS,
    generate=generate,
    accepts=accepts,
    label=label,
)
