"""Judge and extractor: every reply becomes a value or a counted failure, and both reach scores and reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_server as server
from scripted_server import Server, serve

import tasks
from evaluation import chat, prices
from evaluation.baselines import Client, connect
from evaluation.compare import compare
from evaluation.comparison import Entry
from evaluation.judge import NOT_ASKED, Reader, extracting, judging, read_all
from evaluation.ledger import Budget, Ledger
from evaluation.predictions import Prediction, Predictions, write_predictions
from evaluation.retries import Policy
from evaluation.score import Scores, score, write_scores
from ray_jobs.cli import main
from ray_jobs.readers import ReaderModel, readers
from tasks.base import Completion, Record, Rubric, Task, UserError
from tasks.grades import question
from tasks.sources import load

GSM8K = tasks.get("gsm8k")
ANSWERS = ("cba", "EVIL", "rat", "", "yx")


def ask(record: Record, completion: Completion) -> str:
    return question("Grade it from 1 to 5.", asked=record["word"], answer=completion.text, gold=record["word"][::-1])


RUBRIC = Rubric("7", ask, blank=1)


@pytest.fixture
def judged_task(fake_task: Task) -> Task:
    return replace(fake_task, rubric=RUBRIC)


@pytest.fixture
def answers(words: list[Record]) -> Predictions:
    rows = [Prediction(record.id, text) for record, text in zip(words, ANSWERS, strict=True)]
    return Predictions("answers", {row.id: row for row in rows})


@pytest.fixture
def client_of(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    ledgers = []

    def make(state: Server, *, budget: Budget | None = None, run: str = "run", purpose: str = "judge") -> Client:
        where = chat.endpoint("openai:tiny", state.url)
        ledgers.append(Ledger(tmp_path / "cache", run, budget or Budget()))
        options = {"purpose": purpose, "concurrency": 1, "policy": Policy(attempts=2), "wait": lambda seconds: None}
        return connect(where, prices.find(where), ledgers[-1], **options)

    yield make
    for ledger in ledgers:
        ledger.close()


def says(*replies: str) -> dict[int, server.Action]:
    return {number: server.answer(content=reply) for number, reply in enumerate(replies)}


def run(reader: Reader, task: Task, records: list[Record], predictions: Predictions) -> Scores:
    return read_all([reader], task, records, predictions, score(task, records, predictions))


def test_grades_reach_items_and_summary(
    judged_task: Task, words: list[Record], answers: Predictions, client_of: Callable[..., Client], tmp_path: Path
) -> None:
    with serve(says("5", "Score: 2/5", "評価：４", "**4**")) as state:
        found = run(judging(judged_task, client_of(state)), judged_task, words, answers)
        assert [seen.prompt for seen in state.seen] == [
            ask(record, Completion(text)) for record, text in zip(words, ANSWERS, strict=True) if text
        ]
    assert [item.metrics["judged"] for item in found.items] == [5, 2, 4, 1, 4]
    assert (found.metrics["judged"].mean, found.metrics["judged"].n) == (3.2, 5)
    facts = found.assisted["judged"]
    assert (facts["version"], facts["items"], facts["blank"], facts["failures"]) == ("7", 5, 1, {})
    assert facts["values"] == {"1": 1, "2": 1, "4": 2, "5": 1}
    assert (facts["calls"], facts["cost_usd"], facts["model"]) == (4, 0.0, "tiny")
    write_scores(tmp_path, found)
    assert json.loads((tmp_path / "metrics.json").read_text())["assisted"]["judged"] == facts
    rows = [json.loads(line) for line in (tmp_path / "readings.jsonl").read_text().splitlines()]
    assert [row["replies"] for row in rows] == [["5"], ["Score: 2/5"], ["評価：４"], [], ["**4**"]]


def test_equal_questions_are_in_the_cost_once_as_they_are_in_the_ledger(
    judged_task: Task, words: list[Record], client_of: Callable[..., Client], tmp_path: Path
) -> None:
    """Two of three records have the same word and the same answer; 1 and 2 USD per million tokens."""
    same = [words[0], Record("again", words[0].fields), words[1]]
    predictions = Predictions("p", {record.id: Prediction(record.id, "cba") for record in same})
    price = prices.Price(10**6, 2 * 10**6, 10**6, "t", "t")
    with serve(otherwise=server.answer(content="4")) as state:
        client = replace(client_of(state), price=price)
        facts = run(judging(judged_task, client), judged_task, same, predictions).assisted["judged"]
        assert len(state.seen) == 2
        prompts = sum(len(seen.prompt) for seen in state.seen)
    assert (facts["answers"], facts["shared"], facts["calls"]) == (3, 1, 2)
    assert facts["answers_cost_usd"] == facts["cost_usd"] == pytest.approx((prompts + 2 * 2 * 3) / 1e6, rel=1e-12)


def test_failures_are_counted_under_their_names_and_are_neither_zero_nor_an_answer(
    judged_task: Task, words: list[Record], answers: Predictions, client_of: Callable[..., Client]
) -> None:
    script = says("no grade here", "5") | {
        2: server.answer(content=None, refusal="No."),
        3: server.status(500),
        4: server.status(500),
    }
    with serve(script) as state:
        found = run(judging(judged_task, client_of(state)), judged_task, words, answers)
    assert [item.metrics.get("judged") for item in found.items] == [None, 5, None, 1, None]
    assert (found.metrics["judged"].mean, found.metrics["judged"].n) == (3.0, 2)
    assert found.assisted["judged"]["failures"] == {"refusal": 1, "server_error": 1, "unreadable": 1}
    assert "3 of 5 items have no value" in found.warnings[-2]
    assert found.warnings[-1] == "judged: server_error: 500: scripted 500"
    assert found.n == 5


def test_a_rejected_question_is_a_failure_with_its_words_and_the_others_are_graded(
    judged_task: Task, words: list[Record], answers: Predictions, client_of: Callable[..., Client]
) -> None:
    script = {0: server.status(400, {"message": "no such token"}), 1: server.status(400, {"message": "input too long"})}
    with serve(script, server.answer(content="4")) as state:
        found = run(judging(judged_task, client_of(state)), judged_task, words, answers)
    assert found.assisted["judged"]["failures"] == {"prompt_too_long": 1, "rejected": 1}
    assert found.metrics["judged"].n == 3
    assert found.warnings[-1] == "judged: rejected: 400: no such token"


@pytest.mark.parametrize(
    ("action", "failure"),
    [
        (server.answer(content="Score: 9"), "unreadable"),
        (server.answer(content="Score: 4", finish_reason="length"), "truncated"),
        (server.answer(content="4", finish_reason="content_filter"), "content_filter"),
        (server.answer(content=""), "unreadable"),
        (server.raw(b"{"), "malformed"),
    ],
)
def test_every_kind_of_failure(
    judged_task: Task,
    words: list[Record],
    answers: Predictions,
    client_of: Callable[..., Client],
    action: server.Action,
    failure: str,
) -> None:
    with serve(otherwise=action) as state:
        found = run(judging(judged_task, client_of(state)), judged_task, words[:1], answers)
    assert found.assisted["judged"]["failures"] == {failure: 1}
    assert (found.metrics["judged"].mean, found.metrics["judged"].n) == (None, 0)


def test_repeated_judging_shows_how_far_the_judge_agrees_with_itself(
    judged_task: Task, words: list[Record], answers: Predictions, client_of: Callable[..., Client]
) -> None:
    grades = {("abc", 0): "4", ("abc", 1): "5", ("live", 0): "2", ("live", 1): "2", ("tar", 0): "3", ("tar", 1): "?"}

    def act(handler: server.Handler, seen: server.Seen) -> None:
        word = re.search(r"<question>\n(\w+)", seen.prompt)
        assert word
        server.answer(content=grades.get((word[1], seen.body["seed"]), "1"))(handler, seen)

    with serve(otherwise=act) as state:
        reader = judging(judged_task, client_of(state), repeats=2, temperature=0.7)
        found = run(reader, judged_task, words, answers)
        assert len(state.seen) == 8
    assert [item.metrics["judged"] for item in found.items] == [4.5, 2, 3, 1, 1]
    facts = found.assisted["judged"]
    assert facts["failures"] == {"unreadable": 1}
    assert facts["agreement"]["items"] == 3
    assert facts["agreement"]["exact"] == pytest.approx(2 / 3)
    assert facts["agreement"]["mean_difference"] == pytest.approx(1 / 3)


def test_a_budget_leaves_items_unasked_and_says_so(
    judged_task: Task, words: list[Record], answers: Predictions, client_of: Callable[..., Client]
) -> None:
    with serve(otherwise=server.answer(content="3")) as state:
        client = client_of(state, budget=Budget(requests=2))
        found = run(judging(judged_task, client), judged_task, words, answers)
        assert found.assisted["judged"]["failures"] == {NOT_ASKED: 2}
        assert found.metrics["judged"].n == 3
        assert any("budget" in warning for warning in found.warnings)
        again = run(judging(judged_task, client_of(state, run="later")), judged_task, words, answers)
    assert again.metrics["judged"].n == 5
    assert (again.assisted["judged"]["calls"], again.assisted["judged"]["answers"]) == (2, 4)


def test_a_task_without_a_rubric_or_extraction_is_a_user_error(
    fake_task: Task, client_of: Callable[..., Client]
) -> None:
    with serve() as state:
        with pytest.raises(UserError, match="rubric"):
            judging(fake_task, client_of(state))
        with pytest.raises(UserError, match="extraction"):
            extracting(fake_task, client_of(state))
        with pytest.raises(UserError, match="repeats"):
            judging(replace(fake_task, rubric=RUBRIC), client_of(state), repeats=0)


def test_a_row_that_was_not_judged_has_no_value_beside_one_that_was(
    judged_task: Task, words: list[Record], answers: Predictions, client_of: Callable[..., Client], tmp_path: Path
) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b")}
    for file in files.values():
        write_predictions(file, answers.by_id.values())
    with serve(otherwise=server.answer(content="4")) as state:
        reader = judging(judged_task, client_of(state))
        entries = [Entry(name, file) for name, file in files.items()]
        results = compare(
            entries,
            task=judged_task,
            records=words,
            out=tmp_path / "report",
            readers=lambda label: [reader] if label == "a" else [],
        )
        assert len(state.seen) == 4
        write_scores(tmp_path / "scored", run(reader, judged_task, words, answers))
    first, second = results["models"]
    assert (first["metrics"]["judged"]["mean"], first["assisted"]["judged"]["calls"]) == (pytest.approx(3.4), 4)
    assert second["metrics"]["judged"] == {"mean": None, "ci95": [None, None], "n": 0}
    assert [metric["name"] for metric in results["metrics"]][0] == "judged", "a headline measure comes first"
    text = (tmp_path / "report" / "report.md").read_text()
    assert "judged" in text
    assert "n/a" in text
    entries = [Entry("scored", tmp_path / "scored"), entries[1]]
    stored = compare(entries, task=judged_task, records=words, out=tmp_path / "again")
    assert stored["models"][0]["metrics"]["judged"]["mean"] == pytest.approx(3.4)
    assert stored["models"][0]["assisted"]["judged"]["version"] == "7"
    without = compare(entries[1:], task=judged_task, records=words, out=tmp_path / "third")
    assert "judged" not in without["models"][0]["metrics"]
    assert "assisted" not in without["models"][0]


# --- GSM8K's extractor, from the command line


@pytest.fixture
def gsm8k_files(tmp_path: Path) -> tuple[Path, Path]:
    """Five records, and answers in prose in which a plain regex does not find the right number."""
    records = load(GSM8K, "test", "bundled", limit=5)
    references, predictions = tmp_path / "test.jsonl", tmp_path / "tuned.jsonl"
    references.write_text("".join(json.dumps({"id": r.id, **r.fields}) + "\n" for r in records))
    numbers = [GSM8K.reference(record).split("#### ")[1] for record in records]
    texts = [f"It comes to {number} in all, for 1 person." for number in numbers[:4]] + [""]
    write_predictions(predictions, [Prediction(r.id, text) for r, text in zip(records, texts, strict=True)])
    return references, predictions


def extract(handler: server.Handler, seen: server.Seen) -> None:
    """Reads the number as a good extractor would; errs on the second question and sees no answer in the third."""
    number = re.search(r"comes to (\S+) in all", seen.prompt)
    assert number
    server.answer(content={1: "123456789", 2: "NONE"}.get(seen.number, number[1]))(handler, seen)


def test_score_counts_the_extractor_and_without_one_the_metric_is_absent(
    gsm8k_files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, predictions = gsm8k_files
    files = ["--references", str(references), "--predictions", str(predictions)]
    base = ["score", "--task", "gsm8k", *files, "--cache", str(tmp_path), "--concurrency", "1", "--json"]
    with serve(otherwise=extract) as state:
        extractor = ["--extractor", "openai:tiny", "--extractor-base-url", state.url]
        assert main([*base, *extractor, "--out", str(tmp_path / "scores")]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["metrics"]["llm_extracted"]["mean"] == pytest.approx(2 / 5)
        assert found["metrics"]["llm_extracted"]["n"] == 5
        assert found["metrics"]["flexible"]["mean"] == 0
        assert found["assisted"]["llm_extracted"]["calls"] == len(state.seen) == 4, "an empty answer needs no call"
        items = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
        assert [item["metrics"]["llm_extracted"] for item in items] == [1, 0, 0, 1, 0]
        assert all("<answer>" in seen.prompt and "person" in seen.prompt for seen in state.seen)
        assert main([*base, *extractor]) == 0
        again = json.loads(capsys.readouterr().out)
        assert (again["assisted"]["llm_extracted"]["calls"], len(state.seen)) == (0, 4)
    assert main([*base, "--out", str(tmp_path / "scores")]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert "llm_extracted" not in plain["metrics"]
    assert "assisted" not in plain
    assert not (tmp_path / "scores" / "readings.jsonl").exists(), "no replies of an earlier scoring stay"


def test_compare_extracts_for_every_row_under_one_budget(
    gsm8k_files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, predictions = gsm8k_files
    other = tmp_path / "base.jsonl"
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    write_predictions(other, [Prediction(row["id"], row["completion"].replace("It", "So it")) for row in rows])
    command = ["compare", str(predictions), str(other), "--task", "gsm8k", "--references", str(references)]
    with serve(otherwise=extract) as state:
        where = ["--extractor", "openai:tiny", "--extractor-base-url", state.url, "--cache", str(tmp_path)]
        assert (
            main([*command, "--out", str(tmp_path / "out"), *where, "--max-requests", "6", "--concurrency", "1"]) == 0
        )
        assert len(state.seen) == 6
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    facts = [model["assisted"]["llm_extracted"] for model in results["models"]]
    assert [fact["calls"] for fact in facts] == [4, 2], "each row's own calls"
    assert [fact["failures"] for fact in facts] == [{}, {NOT_ASKED: 2}]
    assert "llm_extracted" in (tmp_path / "out" / "report.html").read_text()


def _counts_thoughts(handler: server.Handler, seen: server.Seen) -> None:
    """A model that thinks for 500 tokens before it says a word."""
    cut = seen.body["max_tokens"] < 500
    server.answer(content="" if cut else "42", finish_reason="length" if cut else "stop")(handler, seen)


def test_a_model_that_thinks_first_gets_room_on_the_command_line(
    gsm8k_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    references, predictions = gsm8k_files
    base = ["score", "--task", "gsm8k", "--references", str(references), "--predictions", str(predictions), "--json"]
    with serve({}, _counts_thoughts) as state:
        base += ["--extractor", "openai:tiny", "--extractor-base-url", state.url, "--cache", str(tmp_path / "cache")]
        for more, limit, failures in (([], 64, {"truncated": 4}), (["--extractor-max-new-tokens", "900"], 900, {})):
            assert main([*base, *more]) == 0
            assert json.loads(capsys.readouterr().out)["assisted"]["llm_extracted"]["failures"] == failures
            assert {seen.body["max_tokens"] for seen in state.seen[-4:]} == {limit}
        assert len(state.seen) == 8
        assert main([*base, "--extractor-max-new-tokens", "0"]) == 2


@pytest.mark.parametrize(("given", "limits"), [({}, (64, 512)), ({"max_new_tokens": 9}, (9, 9))])
def test_room_for_thinking_is_a_key_of_readers_and_without_it_questions_are_what_they_were(
    tmp_path: Path, given: dict[str, int], limits: tuple[int, int]
) -> None:
    model = ReaderModel(model="openai:tiny", base_url="http://127.0.0.1:9/v1", **given)
    task = replace(GSM8K, rubric=RUBRIC)
    with readers({"extractor": model, "judge": model}, task, tmp_path, None) as found:
        assert tuple(reader.max_tokens for reader in found("row")) == limits
