"""The task plugin API: what a task is, and the small frozen types that pass between the stages.

Bottom layer of the product. A task says everything about one use case in one file: its record, special tokens,
training text, baseline prompt, parser, scorer and the published numbers it is compared with. Training, prediction,
scoring and the report all ask the same `Task`, so the text a model learns and the text it is graded on cannot drift
apart. Nothing here knows of torch, Ray or DeepSpeed.

    load -> Record -> render -> Segment ... (training)      prompt -> str (baselines)
                   -> completion -> Completion -> score -> Score
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tasks.grades import parse as parse_grade

SPLITS = ("train", "valid", "test")


class UserError(Exception):
    """A mistake the user can mend: the command line shows it without a traceback and exits with code 2.

    Args:
        got: what came, with the value and where it stands.
        wanted: what was expected.
        fix: what to do about it.
    """

    def __init__(self, got: str, wanted: str, fix: str) -> None:
        super().__init__(f"got:    {got}\nwanted: {wanted}\nfix:    {fix}")
        self.got, self.wanted, self.fix = got, wanted, fix

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Crosses processes: an exception is pickled by its one message otherwise, which does not build it again."""
        return UserError, (self.got, self.wanted, self.fix)


@dataclass(frozen=True, slots=True)
class Record:
    """One example of a data set: `id` is `<task>-<split>-<index>`, `fields` the columns (extra ones kept)."""

    id: str
    fields: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.fields[column]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of training text; `loss` says whether its tokens are supervised."""

    text: str
    loss: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote for one record, without the stop token. `finish_reason` "length" means truncated."""

    text: str
    finish_reason: str | None = None

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one completion.

    Attributes:
        metrics: every metric of the task by name; 0/1, or a fraction where the metric says so.
        parsed: the prediction as the parser understood it (JSON-able), None where it could not be read.
        error: one of the task's error categories, None where the answer is right.
        why: one sentence a person understands.
    """

    metrics: Mapping[str, float]
    parsed: Any
    error: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A named measure: `kind` "proportion" is 0/1 per item, "fraction" lies between, "mean" is any number.

    `higher_is_better` is None for measures that only describe (a length, a rate that is neither good nor bad).
    `headline` marks the one or two that a table shows first.
    """

    name: str
    meaning: str
    kind: Literal["proportion", "fraction", "mean"] = "proportion"
    higher_is_better: bool | None = True
    headline: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """A number somebody else printed. Never mixed with measured ones; `approximate` where it was read off a chart."""

    model: str
    setting: str
    metric: str
    value: float | str
    source: str
    approximate: bool = False


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where the data set lives on the Hugging Face hub.

    Attributes:
        dataset_id: for example "GEM/viggo".
        config: the data set's configuration name, None for its only one.
        columns: hub column -> task column.
        splits: our split -> the hub's split expression.
        licence: of the data, for the model card.
    """

    dataset_id: str
    config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "valid": "validation", "test": "test"})
    licence: str = "unknown"


@dataclass(frozen=True, slots=True)
class Rubric:
    """How a language model judges an answer of this task.

    Attributes:
        version: of prompt and parser; figures under different versions are not compared.
        prompt: builds the text; gold answer and aspect are in it where the record has them (`tasks.grades.question`).
        parse: reads the grade out of the judge's reply, None where it cannot; None for `tasks.grades.parse`.
        grades: that may be given.
        metric: name under which the grade is reported, once a judge has run.
        blank: grade of an empty answer, given without asking; None: the judge is asked about it as well.
        max_new_tokens: how much the judge may write.
    """

    version: str
    prompt: Callable[[Record, Completion], str]
    parse: Callable[[str], int | None] | None = None
    grades: tuple[int, ...] = (1, 2, 3, 4, 5)
    metric: Metric = Metric("judged", "grade by a language model under the task's rubric", kind="mean", headline=True)
    blank: int | None = None
    max_new_tokens: int = 512

    def read(self, reply: str) -> int | None:
        """The grade in a judge's reply; None where there is none, or none that may be given."""
        grade = self.parse(reply) if self.parse else parse_grade(reply, self.grades)
        return grade if grade in self.grades else None


@dataclass(frozen=True, slots=True)
class Extraction:
    """How a language model finds the final answer in a completion, for models that were not taught a format.

    Attributes:
        version: of prompt and parser.
        prompt: builds the text from a completion; it says to copy the answer, not to solve or correct anything.
        score: (record, reply) -> 1.0 right, 0.0 wrong or no answer there; None where the reply cannot be read.
        metric: under which the result is reported, once an extractor has run.
        max_new_tokens: how much the extractor may write.
    """

    version: str
    prompt: Callable[[Completion], str]
    score: Callable[[Record, str], float | None]
    metric: Metric
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Everything fulltune needs to know of a task. Build one per file and name it `TASK`.

    Attributes:
        name: registry name; also the prefix of record ids.
        version: bump it whenever a prompt, the rendering or the scorer changes (a golden test insists).
        description: one line for `fulltune tasks`.
        columns: columns that every record must have.
        special_tokens: tokens added to the vocabulary, one id each; empty for tasks that use plain text.
        token_descriptions: special token -> what it means in words, for `model.new_token_init: description`.
        stop: the text that ends an answer in the structured format (supervised in training). "" = the tokenizer's EOS.
        max_new_tokens: how much an answer may take.
        render: record -> segments of training text, special tokens included; the supervised ones are the answer.
        reference: record -> the gold completion (what a perfect model would write, without the stop token).
        baseline_prompt: (record, shots) -> natural-language prompt for models that were not tuned.
        baseline_stop: strings that end an answer to the baseline prompt.
        score: (record, completion) -> Score. Never raises, whatever the completion holds.
        metrics: in the order in which tables show them.
        errors: error category -> meaning; the ones in `format_errors` are format violations.
        generate: split -> records made by our own code (source `bundled`); None where the task has none.
        carve: for data sets with one split: record -> the split it belongs to (a stable hash of its group).
        accepts: record -> whether this row is usable; rows that are not are counted and reported, never silent.
        label: record -> a group it belongs to (a class, a function); `fulltune tasks` shows how often each occurs.
        published: numbers of others for the report.
        options: named settings of the task and their defaults; `configure(**options)` gives the task under others.
        kind: "sft" renders prompt and answer, "cpt" plain text (continued pre-training).
        encode_text / decode_text: a reversible text codec around the tokenizer (for instance newline <-> "<NL>").
        rubric, extraction: measures that a language model takes part in; they are no part of `metrics` and are
            reported only where a judge or an extractor has run.
        language: of its bundled and hub data, as a code of ISO 639, for the model card; "" where it is not said.
    """

    name: str
    version: str
    description: str
    columns: tuple[str, ...]
    special_tokens: tuple[str, ...]
    stop: str
    max_new_tokens: int
    render: Callable[[Record], Sequence[Segment]]
    reference: Callable[[Record], str]
    baseline_prompt: Callable[[Record, Sequence[Record]], str]
    baseline_stop: tuple[str, ...]
    score: Callable[[Record, Completion], Score]
    metrics: tuple[Metric, ...]
    errors: Mapping[str, str]
    format_errors: frozenset[str]
    hub: HubSource | None = None
    generate: Callable[[str], Iterable[Mapping[str, Any]]] | None = None
    carve: Callable[[Mapping[str, Any]], str] | None = None
    accepts: Callable[[Record], bool] | None = None
    label: Callable[[Record], str] | None = None
    published: tuple[Published, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    configure: Callable[..., Task] | None = None
    kind: Literal["sft", "cpt"] = "sft"
    encode_text: Callable[[str], str] = str
    decode_text: Callable[[str], str] = str
    rubric: Rubric | None = None
    extraction: Extraction | None = None
    token_descriptions: Mapping[str, str] = field(default_factory=dict)
    language: str = ""

    @property
    def assisted_metrics(self) -> tuple[Metric, ...]:
        """What a judge or an extractor can add to `metrics`."""
        return tuple(way.metric for way in (self.rubric, self.extraction) if way is not None)

    def with_assisted(self, names: Collection[str]) -> Task:
        """The task with those of its assisted metrics that are named; a headline one is then the first of all."""
        found = [metric for metric in self.assisted_metrics if metric.name in names]
        first, last = [m for m in found if m.headline], [m for m in found if not m.headline]
        return replace(self, metrics=(*first, *self.metrics, *last))

    def metric(self, name: str) -> Metric:
        """The metric of that name; KeyError if the task has none."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"task {self.name!r} has no metric {name!r}; it has {', '.join(self.metric_names)}")

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.metrics)

    def structured_prompt(self, record: Record) -> str:
        """The text before the first supervised segment: what a tuned model is given at prediction time."""
        return "".join(segment.text for segment in _until_loss(self.render(record)))


def _until_loss(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        if segment.loss:
            return
        yield segment
