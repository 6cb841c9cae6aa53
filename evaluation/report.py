"""A `Comparison` -> results.json, report.html, report.md and plots/*.png.

The last step of compare. The HTML page is one file that needs no network and no script; the Markdown file says the
same with links to the plots. Layout lives in report.html.j2, report.css and report.md.j2, sentences in `wording`,
figures in results.json: the templates compute nothing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation import jsonl, plots, wording
from evaluation.comparison import Comparison, Model
from evaluation.examples import marks
from tasks.base import Metric, Published

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

CLIP_CHARS = 1_500  # of a text in the list of worst examples; results.json has all of it

# Letters a reader cannot see or that reorder the text around them: controls, lone surrogates, bidirectional overrides.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


class Category(NamedTuple):
    """An error category as the tables show it."""

    name: str
    meaning: str
    colour: str
    format_error: bool


def write(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Write the report into `out`; returns the content of results.json, which is written last."""
    results = comparison.as_json(wording.headline(comparison))
    steps = plots.losses(comparison.loss_curve)
    images = {
        "metrics": plots.metrics_png(comparison),
        "errors": plots.errors_png(comparison),
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
    template = _environment(escape=True).get_template("report.html.j2")
    images = {"loss": _data_uri(loss), "loss_dark": _data_uri(dark_loss)}
    return template.render(_context(comparison), images=images)


def render_markdown(comparison: Comparison, images: list[str]) -> str:
    """The same report in Markdown; `images` names the plots that exist in plots/."""
    template = _environment(escape=False).get_template("report.md.j2")
    text = template.render(_context(comparison), images=images)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment(*, escape: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("evaluation", package_path=""),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters |= {"md": markdown_text, "fence": fence, "clip": clip, "soft": soft}
    environment.globals |= {name: getattr(wording, name) for name in ("number", "interval", "gap", "p_value")}
    environment.globals |= {"marks": marks, "count": plots.count, "published": published_value}
    return environment


def _context(comparison: Comparison) -> dict[str, Any]:
    task = comparison.task
    headline = [metric for metric in task.metrics if metric.headline] or [comparison.metric]
    steps = plots.losses(comparison.loss_curve)
    leading = {metric.name for metric in headline}
    subject = comparison.subject.label
    main = [p for p in comparison.pairs if p.metric in leading and subject in (p.a, p.b)]
    return {
        "c": comparison,
        "columns": columns(comparison),
        "task": task,
        "title": comparison.title,
        "sentence": wording.headline(comparison),
        "warnings": wording.warnings(comparison),
        "limits": wording.limits(comparison),
        "headline": headline,
        "chart": sorted(plots.shares(task.metrics), key=lambda metric: not metric.headline),
        "categories": categories(comparison),
        "main_tests": [wording.paired_sentence(pair, comparison) for pair in main],
        "other_tests": [wording.paired_sentence(pair, comparison) for pair in comparison.pairs if pair not in main],
        "order_metrics": order_metrics(comparison),
        "format_metric": next((m for m in task.metrics if m.name == "format_violation"), None),
        "findable": next((m for m in task.metrics if m.name == "answer_findable"), None),
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


def order_metrics(comparison: Comparison) -> tuple[Metric, Metric] | None:
    """(order-free, order-strict) for tasks that grade the order apart."""
    names = comparison.task.metric_names
    if not {"attributes", "attributes_ordered"} <= set(names):
        return None
    return comparison.task.metric("attributes"), comparison.task.metric("attributes_ordered")


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


def visible(text: str) -> str:
    """The text with unseen letters written out as escapes, so that nothing hides in a report or reorders it."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def clip(text: str) -> str:
    """The first CLIP_CHARS characters, saying how many were cut."""
    return text if len(text) <= CLIP_CHARS else f"{text[:CLIP_CHARS]} ... ({len(text) - CLIP_CHARS:,} more characters)"


def soft(name: str) -> Markup:
    """A name that may be broken after its underscores, escaped for HTML."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in visible(name).split("_"))


def markdown_text(text: object) -> str:
    """Text for a line or table cell of Markdown: one line, nothing in it taken for markup."""
    line = " ".join(str(text).split()).replace("&", "&amp;")
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)


def fence(text: str) -> str:
    """A fenced block that the text cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def _data_uri(png: bytes | None) -> str | None:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" if png else None
