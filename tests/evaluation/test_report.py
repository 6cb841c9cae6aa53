from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import tasks
from evaluation import plots, report
from evaluation.compare import compare, measure
from evaluation.comparison import Comparison, Entry, Model
from evaluation.intervals import Estimate
from evaluation.predictions import Prediction, write_predictions
from evaluation.series import Curve, Point
from tasks.base import Record, Task

VOID = {"meta", "img", "br", "hr", "input", "link", "source", "wbr", "area", "base", "col", "embed", "track"}
HOSTILE = "</p><script>alert(1)</script> & `````` | [x](javascript:alert) \x00\u202e\ud800 $\\frac{"
CURVE: list[dict[str, float]] = [{"step": step, "loss": 3.0 / step, "lr": 1e-3} for step in range(1, 101)]
PROVENANCE = {"git_sha": "0123abc", "versions": {"torch": "2.13.0"}, "config": {"train": {"seed": 3}}}


class Page(HTMLParser):
    """A strict reader: every tag closed in order, attributes kept, text collected."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _measure(entries: list[Entry], task: Task, records: list[Record], **given: Any) -> Comparison:
    options: dict[str, Any] = {"limit": None, "processes": 1, "spec": None, "source": "bundled", "split": "test"}
    shown: dict[str, Any] = {"title": "A report", "loss_curve": CURVE, "provenance": PROVENANCE}
    return measure(entries, task=task, records=records, **(options | shown | given))


@pytest.fixture
def comparison(entry: Callable[..., Entry], fake_task: Task, many: list[Record]) -> Comparison:
    base = entry("base", many, set(range(90)), shots=4, prompt="natural", seconds=12.5)
    loud = entry("gpt-4", many[:-2], set(range(60, 110)), says="LOUD")
    return _measure([base, loud, entry("tuned", many, set(range(30)), prompt="structured")], fake_task, many)


@pytest.fixture
def html(comparison: Comparison) -> str:
    return report.render_html(comparison, loss=b"light", dark_loss=b"dark")


def test_the_page_is_well_formed_and_accessible(html: str) -> None:
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert page.all("img")
    assert all(image.get("alt") for image in page.all("img"))
    assert page.all("th")
    assert all(head.get("scope") in ("col", "row", "rowgroup") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert all(region.get("aria-label") and region.get("tabindex") == "0" for region in regions)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)


def test_heading_levels_are_not_skipped(html: str) -> None:
    levels = [int(name[1]) for name, _ in Page(html).tags if re.fullmatch("h[1-6]", name)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_the_page_needs_no_network_and_its_policy_forbids_one(html: str) -> None:
    page = Page(html)
    assert not page.all("link")
    assert page.all("script") == [{"type": "application/json", "id": "data"}, {}]
    policy = next(m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    script = html[html.rindex("<script>") + len("<script>") : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(|innerHTML|insertAdjacentHTML|eval\(", script)
    sources = [a[name] or "" for _, a in page.tags for name in ("src", "srcset", "href") if name in a]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.search(r"url\(|@import|https?://", html)
    handlers = {name for _, attributes in page.tags for name in attributes if name.startswith("on")}
    assert handlers == set()


def test_rows_of_the_results_table(html: str) -> None:
    text = " ".join(" ".join(Page(html).text).split())
    assert "base base 25.0 % [18.1, 33.4] 120 0 0 not measured 4.0 not measured 0.10 s mean, batched" in text
    assert "gpt-4 56.7 % [47.7, 65.2] 120 2 0 not measured 4.0" in text
    assert "tuned tuned 75.0 % [66.6, 81.9] 120 0 0" in text


def test_published_figures_stand_apart_and_are_marked(html: str) -> None:
    parts = [part[: part.index("</tbody>")] for part in html.split('<tbody class="foreign">')[1:]]
    table, sources = (" ".join(" ".join(Page(f"<p>{part}</p>").text).split()) for part in parts)
    assert "Published by others, not measured here" in table
    assert "Big-1 tuned 90.0 % published" in table
    assert "Big-1 tuned correct 90.0 % published a paper, table 2" in sources
    assert "Big-2 prompt correct > 0.5 approximate a chart" in sources
    assert html.count("Big-1") == 2


def test_what_a_judge_or_extractor_cost_and_failed_is_shown(comparison: Comparison) -> None:
    facts = {"model": "small-judge", "version": "2", "items": 120, "failures": {"unreadable": 3}, "repeats": 2}
    facts |= {"answers_cost_usd": 0.06, "shared": 4, "agreement": {"exact": 0.9, "pairs": 117}}
    models = [replace(m, scores=replace(m.scores, assisted={"judged": facts})) for m in comparison.models[:1]]
    shown = replace(comparison, models=(*models, *comparison.models[1:]))
    said = (
        "base, judged: read by small-judge (version 2), 120 items, failures: unreadable 3; $0.50 per 1,000 answers "
        "(4 answers shared by equal questions, charged once); agreement over 2 readings: exact 0.9, pairs 117."
    )
    assert said in " ".join(Page(report.render_html(shown)).text)
    assert said in report.render_markdown(shown, [])


def test_of_two_published_figures_the_first_stands_in_the_table() -> None:
    task = tasks.get("viggo")
    rows = report.published_rows(task, [task.metric("attributes_ordered"), task.metric("attributes")])
    figures = next(found for model, setting, found in rows if model == "Llama-2-13B" and "tuned" in setting)
    assert [row.value if row else None for row in figures] == [0.98, "> 0.90"]


def test_every_section_is_there(html: str) -> None:
    text = " ".join(" ".join(Page(html).text).split())
    for part in (
        "Read these first gpt-4: 2 of 120 records have no prediction",
        "no error 90 30 68",
        "Clearly better 2 correct 75.0 % against 25.0 % p < 0.001",
        "gpt-4 68 56.7 % 0 0.0 % 52 43.3 % 100.0 %",
        "a true difference of 18.5 points or more would be found with 80 % power",
        "Tuning tuned took: unknown.",
        "Format violations empty nothing 0 0 2 shouting capitals 0 0 50",
        "Readable, but wrong wrong another word 30 90 0",
        "tuned minus base is +50.0 points",
        "generated by fulltune's own code",
        "tokens per answer 4.0 4.0 4.0",
        "answers with a token count, if not all 118 of 120",
        "Training loss over 100 logged steps: 3.000 at step 1, 0.030 at step 100",
        "versions.torch 2.13.0",
        "train: seed: 3",
    ):
        assert part in text


def test_twenty_worst_examples_with_marks(html: str) -> None:
    page = Page(html)
    assert len(page.all("article")) == 20
    assert "nonsense" in page.text


def test_differences_are_marked_inside_an_output(fake_task: Task, tmp_path: Path) -> None:
    records = [Record("r", {"word": "c b a"})]
    write_predictions(tmp_path / "p.jsonl", [Prediction("r", "a b x")])
    page = report.render_html(_measure([Entry("tuned", tmp_path / "p.jsonl")], fake_task, records))
    assert '<p class="text">a b <del>c</del><ins>x</ins></p>' in page


@pytest.fixture
def hostile(tmp_path: Path, fake_task: Task) -> Comparison:
    records = [Record(f"r{i}{HOSTILE}", {"word": HOSTILE}) for i in range(3)]
    rows = [Prediction(record.id, HOSTILE + "x") for record in records]
    write_predictions(tmp_path / "p.jsonl", rows)
    facts: Mapping[str, Any] = {HOSTILE: {HOSTILE: HOSTILE}, "config": {"k": HOSTILE.replace("\ud800", "")}}
    entries = [
        Entry(f"{HOSTILE}{name}", tmp_path / "p.jsonl", note=HOSTILE, details={HOSTILE: HOSTILE})
        for name in (" base", " tuned")
    ]
    return _measure(entries, fake_task, records, title=HOSTILE, provenance=facts, source=HOSTILE)


def test_hostile_text_stays_text(hostile: Comparison) -> None:
    text = report.render_html(hostile)
    page = Page(text)
    assert len(page.all("script")) == 2
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "\\u202e" in text
    text.encode("utf-8")


def test_data_in_the_page_reads_back_and_cannot_break_out(hostile: Comparison) -> None:
    text = report.render_html(hostile)
    _, _, rest = text.partition('<script type="application/json" id="data">')
    block, _, _ = rest.partition("</script>")
    assert not re.search(r"[<>&']", block)  # neither a tag nor a comment nor an attribute can begin or end in it
    data = json.loads(block)
    assert data["answers"][0]["texts"][0] == report.markup.visible(HOSTILE + "x")
    assert data["ids"][0].startswith("r0</p><script>")


def test_hostile_text_breaks_no_markdown(hostile: Comparison) -> None:
    text = report.render_markdown(hostile, ["metrics", "errors"])
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", text)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\(javascript", outside)
    blocks = re.findall(r"(?m)^(`{3,})text$", text)
    assert len(blocks) == 3 * 4 + 1
    assert {len(ticks) for ticks in blocks} == {7}
    assert text.encode("utf-8")


def test_hostile_labels_are_drawn(hostile: Comparison) -> None:
    for png in (plots.metrics_png(hostile), plots.errors_png(hostile)):
        assert png is not None
        assert png.startswith(b"\x89PNG")


def test_a_mean_that_is_off_its_equal_values_by_the_last_bit_is_drawn(comparison: Comparison) -> None:
    equal = [0.95] * 3
    mean = fmean(equal)
    assert mean != equal[0], "what the test is about"
    assert plots.curves_png(
        comparison,
        [Curve("a", "correct", tuple(Point(x, ("a",), mean, 0.95, 0.95) for x in (0, 4)))],
        "worked examples",
    )
    for low, high in ((0.95, 0.95), (mean, mean), (None, None)):
        off = [_with(model, Estimate(None if low is None else mean, low, high, 3)) for model in comparison.models]
        flipped = [_with(model, Estimate(None if low is None else 0.95, low, high, 3)) for model in comparison.models]
        for models in (off, flipped):
            assert plots.metrics_png(replace(comparison, models=tuple(models)))


def _with(model: Model, estimate: Estimate) -> Model:
    return replace(model, scores=replace(model.scores, metrics=dict.fromkeys(model.scores.metrics, estimate)))


def test_markdown_tables_have_one_shape(comparison: Comparison) -> None:
    text = report.render_markdown(comparison, ["metrics", "errors", "loss"])
    tables = re.findall(r"(?m)(?:^\|.*\|$\n?)+", text)
    assert len(tables) == 7
    for table in tables:
        rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.strip().splitlines()]
        assert len(set(rows)) == 1, table
        assert len(rows) > 2
    assert all(f"](plots/{name}.png)" in text for name in ("metrics", "errors", "loss"))


def test_markdown_of_a_small_report(
    entry: Callable[..., Entry], fake_task: Task, many: list[Record], golden: Callable[[str, str], None]
) -> None:
    rows = many[:6]
    found = _measure([entry("base", rows, {0, 1, 2, 3}, shots=2), entry("tuned", rows, {5})], fake_task, rows)
    golden("evaluation_report.md", report.render_markdown(found, ["metrics", "errors", "loss"]))


def test_the_same_input_gives_the_same_bytes(
    entry: Callable[..., Entry], fake_task: Task, many: list[Record], tmp_path: Path
) -> None:
    entries = [entry("base", many, set(range(90))), entry("tuned", many, {1})]
    for folder in ("a", "b"):
        compare(entries, task=fake_task, records=many, out=tmp_path / folder, loss_curve=CURVE)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_without_a_loss_curve_no_old_plot_is_left(
    entry: Callable[..., Entry], fake_task: Task, many: list[Record], tmp_path: Path
) -> None:
    entries = [entry("tuned", many, {1})]
    curves: list[list[dict[str, float]]] = [CURVE, [{"step": 1, "loss": float("nan")}, {"epoch": 1}]]
    for curve in curves:
        compare(entries, task=fake_task, records=many, out=tmp_path / "out", loss_curve=curve)
    assert not (tmp_path / "out" / "plots" / "loss.png").exists()
    assert "Training loss" not in (tmp_path / "out" / "report.html").read_text()


def test_the_price_of_a_strict_order_is_shown(tmp_path: Path) -> None:
    task = tasks.get("viggo")
    gold = "inform(name[Dota], release_year[2013])"
    records = [Record(f"viggo-test-{i}", {"mr": gold, "ref": "Dota is of 2013."}) for i in range(4)]
    swapped = "inform(release_year[2013], name[Dota])"
    rows = [Prediction(record.id, swapped if i else gold) for i, record in enumerate(records)]
    write_predictions(tmp_path / "p.jsonl", rows)
    text = report.render_html(_measure([Entry("gpt-4", tmp_path / "p.jsonl")], task, records))
    text = " ".join(" ".join(Page(text).text).split())
    assert re.search(r"attributes_ ordered gap gpt-4 100\.0 % \[\S+ \S+\] 25\.0 % \[\S+ \S+\] \u221275\.0 points", text)


def test_loss_lines_are_ordered_and_the_later_attempt_wins() -> None:
    lines: list[dict[str, float | None]] = [
        {"step": 2, "loss": 2.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 1.5},
        {"step": 3, "loss": None},
    ]
    assert plots.losses(lines) == [(1.0, 3.0), (2.0, 1.5)]


def test_text_has_enough_contrast_in_both_schemes() -> None:
    style = (Path(report.__file__).parent / "templates" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media screen")[:2])
    assert len(dark) > 10
    for colours in (light, light | dark):
        for ink in ("text", "muted", "accent", "missing", "extra", "warn"):
            for paper in ("page", "panel", "accent-soft") if ink in ("text", "muted", "accent") else ("page",):
                assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
        for ink, paper in (("missing", "missing-soft"), ("extra", "extra-soft"), ("text", "warn-soft")):
            assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
        assert _contrast(colours["second"], colours["page"]) >= 3.0
        assert _contrast(colours["bar"], colours["page"]) >= 3.0  # graphics, WCAG 2.2 criterion 1.4.11


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two #rrggbb colours."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
