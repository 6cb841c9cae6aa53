"""ViGGO turned round: from a sentence about a video game to its meaning representation.

One task file: record, training text, baseline prompt, scorer, published numbers. The grammar of the answers is in
`tasks.viggo_form`, the records of source `bundled` in `tasks.viggo_bundled`.

    ref  Silent Orchard from 2011 is a puzzle game, and it is on Steam.
    mr   inform(name[Silent Orchard], release_year[2011], genres[puzzle], available_on_steam[yes])

Data: Juraska et al., "ViGGO: A Video Game Corpus for Data-To-Text Generation in Open-Domain Conversation", INLG 2019.
The reversed task, its special tokens and the rule on attribute order are those of Anyscale's study "Fine-Tuning
Llama-2: A Comprehensive Case Study for Tailoring Models to Unique Applications" (August 2023). The study scored the
function, the attribute names and their order (`function`, `attributes`, `attributes_ordered` here), not the values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tasks.base import Completion, HubSource, Metric, Published, Record, Score, Segment, Task
from tasks.viggo_form import (
    ATTRIBUTES,
    FUNCTIONS,
    ParseError,
    Representation,
    grounded,
    in_precedence_order,
    normal_value,
    parse,
)

START_Q, END_Q, START_A, END_A = "<START_Q>", "<END_Q>", "<START_A>", "<END_A>"

METRICS = (
    Metric("attributes_ordered", "function and attribute names right, names in the order of precedence", headline=True),
    Metric("attributes", "function and set of attribute names right, in any order", headline=True),
    Metric("function", "the function is right"),
    Metric("values", "attributes right, and every value equal after normalisation"),
    Metric("exact", "the same text as the reference"),
    Metric("parsable", "one function with its attributes and nothing else"),
    Metric("grounded", "share of predicted values that stand in the sentence; 0 if not parsable", kind="fraction"),
    Metric("format_violation", "breaks a rule of form that can be checked without the answer", higher_is_better=False),
)

# Listed in the order in which they are looked for: the first that applies is the category of an answer.
ERRORS = {
    "empty": "nothing but white space",
    "truncated": "cut off by the token limit before it became a whole function",
    "not_a_function": "not one function(attribute[value], ...) and nothing else",
    "unknown_function": "a function that is not one of the nine",
    "unknown_attribute": "an attribute that is not one of the fourteen",
    "wrong_function": "one of the nine functions, but not the right one",
    "missing_attribute": "an attribute of the reference is not there",
    "extra_attribute": "an attribute that the reference does not have, or one written twice",
    "wrong_order": "the right attributes, but not in the order of precedence",
    "wrong_value": "the right attributes in the right order, but another value",
}

# Order is a rule of form as well: an answer can be seen to break it without knowing the reference.
FORMAT_ERRORS = frozenset(
    {"empty", "truncated", "not_a_function", "unknown_function", "unknown_attribute", "wrong_order"}
)


def render(record: Record) -> tuple[Segment, ...]:
    """Training text: the sentence, unsupervised, then the representation and the stop token, supervised."""
    question = f"{START_Q}{record['ref']}{END_Q}{START_A}"
    return Segment(question, loss=False), Segment(f"{record['mr']}{END_A}", loss=True)


def reference(record: Record) -> str:
    """The gold representation."""
    return str(record["mr"])


_INSTRUCTION = """\
Translate a sentence about video games into a meaning representation: one function with a list of attributes, each \
with its value in square brackets, written as function(attribute[value], attribute[value], ...).

The function says what the speaker does. It is one of: {functions}.

The attributes say what the sentence mentions. Use only these: {attributes}.

Attributes come in exactly the order of this list, whatever their order in the sentence. For instance, if the sentence \
mentions the platforms first, then the genre and at last the name of the game, the representation still lists name, \
then genres, then platforms.

Take values from the sentence. Part several values of one attribute with a comma and a space. Attributes beginning \
with has_ and available_on_steam are yes or no. A rating is excellent, good, average or poor. If the speaker asks \
about an attribute, leave its brackets empty.

Answer with the representation only, on one line, without explanation."""


def baseline_prompt(record: Record, shots: Sequence[Record] = ()) -> str:
    """The task in words for models that were not tuned: rules, then worked examples, then the sentence."""
    instruction = _INSTRUCTION.format(functions=", ".join(FUNCTIONS), attributes=", ".join(ATTRIBUTES))
    examples = (f"Sentence: {shot['ref']}\nRepresentation: {shot['mr']}" for shot in shots)
    return "\n\n".join((instruction, *examples, f"Sentence: {record['ref']}\nRepresentation:"))


def score(record: Record, completion: Completion) -> Score:
    """Judge one completion; see `METRICS` and `ERRORS`. Never raises; linear in the length of the completion.

    An answer that was cut off but happens to be a whole function is judged by what it says; `truncated` is for those
    that cannot be read.
    """
    text = _encodable(completion.text).strip()
    gold_text = reference(record).strip()
    gold = _parse_or_error(gold_text)
    predicted = _parse_or_error(text)
    exact = text == gold_text
    if isinstance(predicted, ParseError):
        error, why = _unreadable(text, completion, predicted)
        return Score(_metrics(exact=exact, format_violation=True), None, error, why)
    if isinstance(gold, ParseError):  # `accepts` keeps such records out; a caller may still have made one
        return Score(_metrics(exact=exact, parsable=True), _jsonable(predicted), "wrong_function", f"reference: {gold}")
    return _compare(gold, predicted, sentence=str(record["ref"]), exact=exact)


def _compare(gold: Representation, predicted: Representation, *, sentence: str, exact: bool) -> Score:
    function = predicted.function == gold.function
    attributes = function and Counter(predicted.attributes) == Counter(gold.attributes)
    ordered = in_precedence_order(predicted.attributes)
    faults = list(_faults(gold, predicted, ordered))
    error, why = next(iter(faults), (None, "function, attributes, order and values are right"))
    metrics = _metrics(
        parsable=True,
        function=function,
        attributes=attributes,
        attributes_ordered=attributes and ordered,
        values=attributes and not any(category == "wrong_value" for category, _ in faults),
        exact=exact,
        grounded=grounded(predicted.slots, sentence),
        format_violation=any(category in FORMAT_ERRORS for category, _ in faults),
    )
    return Score(metrics, _jsonable(predicted), error, why)


def _faults(gold: Representation, predicted: Representation, ordered: bool) -> Iterator[tuple[str, str]]:
    """Everything wrong with a readable answer as (category, sentence), in the order of `ERRORS`."""
    if predicted.function not in FUNCTIONS:
        yield "unknown_function", f"{_short(predicted.function)} is not one of the nine functions"
    unknown = [name for name in predicted.attributes if name not in ATTRIBUTES]
    if unknown:
        yield "unknown_attribute", f"{_named(unknown)} is not one of the fourteen attributes"
    if predicted.function != gold.function:
        yield "wrong_function", f"the function is {_short(predicted.function)}, the reference has {gold.function}"
    wanted, came = Counter(gold.attributes), Counter(predicted.attributes)
    if missing := list((wanted - came).elements()):
        yield "missing_attribute", f"{_named(missing)} is missing"
    if extra := list((came - wanted).elements()):
        yield "extra_attribute", f"{_named(extra)} is in excess of the reference"
    if not ordered:
        yield "wrong_order", f"the attributes come in the order {_named(predicted.attributes)}"
    yield from _wrong_values(gold, predicted)


def _wrong_values(gold: Representation, predicted: Representation) -> Iterator[tuple[str, str]]:
    wanted = dict(gold.slots)
    right = {(name, normal_value(name, value)) for name, value in gold.slots}
    for name, value in predicted.slots:
        if name in wanted and (name, normal_value(name, value)) not in right:
            yield "wrong_value", f"{name} is {_short(repr(value))}, the reference has {wanted[name]!r}"


def _unreadable(text: str, completion: Completion, error: ParseError) -> tuple[str, str]:
    if not text:
        return "empty", "the answer is empty"
    if completion.truncated:
        return "truncated", f"cut off by the token limit: {error}"
    return "not_a_function", f"not one function(attribute[value], ...): {error}"


def _parse_or_error(text: str) -> Representation | ParseError:
    try:
        return parse(text)
    except ParseError as error:
        return error


def _metrics(**values: float) -> dict[str, float]:
    return {metric.name: float(values.get(metric.name, 0.0)) for metric in METRICS}


def _jsonable(representation: Representation) -> dict[str, Any]:
    """Slots as pairs, not as a mapping: order and repetition are part of what was predicted."""
    return {"function": representation.function, "attributes": [list(slot) for slot in representation.slots]}


def _encodable(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 file can hold, replaced by `?`."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _named(names: Sequence[str], most: int = 14) -> str:
    listed = ", ".join(_short(name) for name in names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def accepts(record: Record) -> bool:
    """Whether the reference of this row can be read: a row whose reference cannot be is of no use for scoring."""
    return isinstance(_parse_or_error(reference(record)), Representation)


def label(record: Record) -> str:
    """The function of the reference."""
    return reference(record).partition("(")[0].strip()


def generate(split: str) -> Iterable[Mapping[str, Any]]:
    """Rows of source `bundled`: made by our own code, in ViGGO's form."""
    from tasks.viggo_bundled import generate as generate_rows

    return generate_rows(split)


_STUDY = "Anyscale, Fine-Tuning Llama-2: A Comprehensive Case Study, August 2023"
_TUNED = "full-parameter tuned, special tokens"

# The study prints no exact definition beside its 58 % and 98 %; its check is function, attribute names and order.
PUBLISHED = (
    Published("Llama-2-13B-chat", "prompt, not tuned", "attributes_ordered", 0.58, f"{_STUDY}, text"),
    Published("Llama-2-13B", _TUNED, "attributes_ordered", 0.98, f"{_STUDY}, text"),
    Published("Llama-2-7B", _TUNED, "attributes", "> 0.90", f"{_STUDY}, caption"),
    Published("Llama-2-7B", _TUNED, "attributes_ordered", "> 0.90", f"{_STUDY}, caption"),
    Published("Llama-2-13B", _TUNED, "attributes", "> 0.90", f"{_STUDY}, caption"),
    Published("Llama-2-13B", _TUNED, "attributes_ordered", "> 0.90", f"{_STUDY}, caption"),
    Published("GPT-4", "prompt with 9 examples", "attributes", 0.90, f"{_STUDY}, read off a chart", approximate=True),
    Published(
        "GPT-4", "prompt with 9 examples", "attributes_ordered", 0.50, f"{_STUDY}, read off a chart", approximate=True
    ),
)

TASK = Task(
    name="viggo",
    version="1",
    description="sentence about a video game -> function(attribute[value], ...) with strict attribute order",
    columns=("mr", "ref"),
    special_tokens=(START_Q, END_Q, START_A, END_A),
    token_descriptions={START_Q: "sentence:", END_Q: "end of sentence", START_A: "meaning:", END_A: "end of text"},
    stop=END_A,
    max_new_tokens=160,  # the longest of the 6,900 real representations takes about 90 Llama-2 tokens
    render=render,
    reference=reference,
    baseline_prompt=baseline_prompt,
    baseline_stop=("\n\n", "\nSentence:"),
    score=score,
    metrics=METRICS,
    errors=ERRORS,
    format_errors=FORMAT_ERRORS,
    hub=HubSource("GEM/viggo", columns={"meaning_representation": "mr", "target": "ref"}, licence="CC-BY-SA-4.0"),
    generate=generate,
    accepts=accepts,
    label=label,
    published=PUBLISHED,
    language="en",
)
