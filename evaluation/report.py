"""A `Comparison` -> results.json, report.html, report.md and plots/*.png.

The last step of compare. The HTML page is one file that needs no network; its script (report.js, the item browser) is
the only one its content security policy lets run. The Markdown file says the same with links to the plots. Layout
lives in templates/, sentences in `wording` and `findings`, figures in results.json: the templates compute nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation import browser, charts, findings, jsonl, markup, plots, training, wording
from evaluation.comparison import Comparison, Model
from evaluation.examples import marks
from tasks.base import Metric, Published, Task

if TYPE_CHECKING:
    from jinja2 import Environment

# (lenient, strict, what the strict one asks for): the gap is what form costs an answer that is right in substance.
STRICTNESS = (
    ("attributes", "attributes_ordered", "the attributes in the order of precedence"),
    ("flexible", "strict", "the final answer behind ####"),
    ("lm_eval_flexible", "lm_eval_strict", "the final answer in the form of lm-evaluation-harness"),
)


class Category(NamedTuple):
    """An error category as the tables show it."""

    name: str
    meaning: str
    colour: str
    format_error: bool


class Gap(NamedTuple):
    """Two readings of the same answers."""

    lenient: Metric
    strict: Metric
    asks: str


class Outcome(NamedTuple):
    """What became of one model's answers: right, wrong in proper form, not in proper form; shares of n."""

    model: Model
    right: int
    wrong: int
    malformed: int

    @property
    def right_of_well_formed(self) -> float | None:
        well_formed = self.right + self.wrong
        return self.right / well_formed if well_formed else None


def write(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Write the report into `out`; returns the content of results.json, which is written last."""
    results = comparison.as_json(wording.headline(comparison))
    steps = plots.losses(comparison.loss_curve)
    images = {
        "metrics": plots.metrics_png(comparison),
        "errors": plots.errors_png(comparison),
        "few_shot": plots.curves_png(comparison, comparison.series.few_shot, "worked examples in the prompt"),
        "learning": plots.curves_png(comparison, comparison.series.learning, "training rows", log=True),
        "loss": plots.loss_png(steps) if steps else None,
    }
    _write_plots(out / "plots", images)
    dark_loss = plots.loss_png(steps, dark=True) if steps else None
    jsonl.write_text(out / "report.html", render_html(comparison, loss=images["loss"], dark_loss=dark_loss))
    jsonl.write_text(out / "report.md", render_markdown(comparison, [name for name, png in images.items() if png]))
    jsonl.write_text(out / "results.json", jsonl.dump(results, indent=1) + "\n")
    return results


def _write_plots(folder: Path, images: Mapping[str, bytes | None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in images.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # no plot of an earlier report stays beside this one
        if png is not None:
            path.write_bytes(png)


def render_html(comparison: Comparison, *, loss: bytes | None = None, dark_loss: bytes | None = None) -> str:
    """The page as one self-contained string; `loss` and `dark_loss` are PNGs of the loss curve."""
    from markupsafe import Markup

    template = _environment(escape=True).get_template("report.html.j2")
    script = files("evaluation").joinpath("templates", "report.js").read_text(encoding="utf-8")
    return template.render(
        _context(comparison),
        images={"loss": _data_uri(loss), "loss_dark": _data_uri(dark_loss)},
        few_shot_charts=charts.line_charts(
            comparison.series.few_shot, comparison.task.metrics, axis="worked examples in the prompt", log=False
        ),
        learning_charts=charts.line_charts(
            comparison.series.learning, comparison.task.metrics, axis="training rows, each step a doubling", log=True
        ),
        script=Markup(script),  # our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        judging=[metric.name for metric in browser.judging(comparison)] + [browser.NO_ERROR],
        payload=markup.script_data(browser.payload(comparison, clean=markup.visible)),
    )


def render_markdown(comparison: Comparison, images: list[str]) -> str:
    """The same report in Markdown; `images` names the plots that exist in plots/."""
    template = _environment(escape=False).get_template("report.md.j2")
    text = template.render(_context(comparison), images=images)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment(*, escape: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("evaluation"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    shown = {"md": markup.markdown_text, "fence": markup.fence, "clip": markup.clip, "soft": markup.soft}
    environment.filters |= shown | {"usd": findings.usd, "seconds": findings.seconds}
    environment.globals |= {name: getattr(wording, name) for name in ("number", "interval", "gap", "p_value")}
    environment.globals |= {"marks": marks, "count": plots.count, "published": published_value}
    return environment


def _shown(value: Any) -> Any:
    """Every text that a template prints, its unseen letters made visible, unless it is markup of our own."""
    return markup.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _context(comparison: Comparison) -> dict[str, Any]:
    task = comparison.task
    headline = [metric for metric in task.metrics if metric.headline] or [comparison.metric]
    steps = plots.losses(comparison.loss_curve)
    main = [
        pair
        for metric in headline
        for rival in findings.rivals(comparison, metric)
        if (pair := comparison.pair(metric.name, comparison.subject.label, rival.label)) is not None
    ]
    return {
        "c": comparison,
        "columns": columns(comparison),
        "task": task,
        "title": comparison.title,
        "sentence": wording.headline(comparison),
        "intervals_note": wording.INTERVALS,
        "warnings": wording.warnings(comparison),
        "limits": wording.limits(comparison),
        "findings": findings.findings(comparison),
        "settings_sentence": findings.settings_sentence(comparison),
        "headline": headline,
        "published_rows": published_rows(task, headline),
        "chart": sorted(plots.shares(task.metrics), key=lambda metric: not metric.headline),
        "categories": categories(comparison),
        "outcomes": outcomes(comparison),
        "gaps": gaps(comparison),
        "main_tests": [wording.paired_sentence(pair, comparison) for pair in main],
        "power_tests": [findings.power_sentence(pair, comparison) for pair in main],
        "format_metric": next((m for m in task.metrics if m.name == "format_violation"), None),
        "findable": next((m for m in task.metrics if m.name == "answer_findable"), None),
        "few_shot": [findings.curve_sentence(line, "shots", comparison) for line in comparison.series.few_shot],
        "learning": [findings.curve_sentence(line, "rows", comparison) for line in comparison.series.learning],
        "spreads": [findings.spread_sentence(spread, comparison) for spread in comparison.series.seeds],
        "prompts": findings.prompt_sentences(comparison),
        "money": [*findings.economy_sentences(comparison), *training.sentences(comparison.subject.details)],
        "readers": findings.reader_sentences(comparison),
        "leak_sentence": findings.leak_sentence(comparison),
        "settings": settings(comparison),
        "loss_sentence": wording.loss_sentence(steps) if steps else "",
        "facts": flat({k: v for k, v in comparison.provenance.items() if k != "config"}),
        "config": config_text(comparison.provenance.get("config")),
    }


def columns(comparison: Comparison) -> list[Model]:
    """The models as columns: the subject first, so that a narrow screen shows it without scrolling."""
    return [comparison.subject, *(model for model in comparison.models if model is not comparison.subject)]


def categories(comparison: Comparison) -> list[Category]:
    """Error categories that occur, format violations first."""
    task = comparison.task
    return [
        Category(name, task.errors.get(name, ""), colour, name in task.format_errors)
        for name, colour in plots.colours(comparison)
    ]


def outcomes(comparison: Comparison) -> list[Outcome]:
    """Format violations apart from wrong answers, by error category."""
    rows = []
    for model in comparison.models:
        malformed = sum(count for name, count in model.scores.errors.items() if name in comparison.task.format_errors)
        right = plots.count(model, None)
        rows.append(Outcome(model, right, model.scores.n - right - malformed, malformed))
    return rows


def gaps(comparison: Comparison) -> list[Gap]:
    """The lenient and the strict metric, for tasks that grade the form apart."""
    task = comparison.task
    known = [row for row in STRICTNESS if {row[0], row[1]} <= set(task.metric_names)]
    return [Gap(task.metric(lenient), task.metric(strict), asks) for lenient, strict, asks in known]


def settings(comparison: Comparison) -> dict[str, list[str]]:
    """How each row was made: what -> one text per model, for every detail that any of them has."""
    names = dict.fromkeys(name for model in comparison.models for name in model.details)
    rows = {name: [_text(model.details.get(name)) for model in columns(comparison)] for name in names}
    return {name: values for name, values in (rows | _tokens(comparison)).items() if any(values)}


def _tokens(comparison: Comparison) -> dict[str, list[str]]:
    counts = [(model.tokens, model.scores.n) for model in columns(comparison)]
    return {
        "generated tokens": [f"{tokens.completion:,}" if tokens else "" for tokens, _ in counts],
        "tokens per answer": [f"{tokens.per_answer:.1f}" if tokens else "" for tokens, _ in counts],
        "answers with a token count, if not all": [
            f"{tokens.answers:,} of {n:,}" if tokens and tokens.answers < n else "" for tokens, n in counts
        ],
    }


def published_rows(task: Task, metrics: list[Metric]) -> list[tuple[str, str, list[Published | None]]]:
    """(model, setting, one figure per metric) of what others printed, as far as it has one of `metrics`.

    Of two figures for the same thing (an exact one and "> 0.90") the first stands here; the sources list both.
    """
    found: dict[tuple[str, str], dict[str, Published]] = {}
    for row in task.published:
        if row.metric in {metric.name for metric in metrics}:
            found.setdefault((row.model, row.setting), {}).setdefault(row.metric, row)
    return [(model, setting, [by.get(m.name) for m in metrics]) for (model, setting), by in found.items()]


def published_value(row: Published, comparison: Comparison) -> str:
    """A published figure in the unit of its metric; texts such as "> 0.90" stay as they were printed."""
    known = {metric.name: metric for metric in comparison.task.metrics}
    if isinstance(row.value, str) or row.metric not in known:
        return str(row.value)
    return ("about " if row.approximate else "") + wording.number(float(row.value), known[row.metric])


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted name, text)."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else jsonl.dump(value)


def config_text(config: Any) -> str:
    """A configuration as YAML; "" without one."""
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).strip() if config else ""


def _data_uri(png: bytes | None) -> str | None:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" if png else None
