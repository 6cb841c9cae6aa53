"""`fulltune predict --model openai:...` from end to end: same files as other models, resumable, budgeted, paid once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scripted_server as server
from scripted_server import Server, serve

import tasks
from evaluation import predict_api, prediction_file
from evaluation.chat import Chat, endpoint
from evaluation.compare import role_of
from evaluation.comparison import Entry
from evaluation.economy import usage
from evaluation.ledger import Budget
from evaluation.predict_api import ApiRequest, Outcome
from evaluation.predictions import read_predictions
from evaluation.retries import Policy
from ray_jobs.cli import main
from ray_jobs.commands import endpoints
from tasks.base import Task, UserError
from tasks.sources import load

TASK = tasks.get("viggo")
N = 12
RECORDS = load(TASK, "test", "bundled", limit=N)
PATIENCE = {"policy": Policy(attempts=3, jitter=lambda: 0.0), "wait": lambda seconds: None}


def request(state: Server, folder: Path, **changes: Any) -> ApiRequest:
    settings = {"task": TASK, "split": "test", "source": "bundled", "endpoint": endpoint("openai:tiny", state.url)}
    files = {"out": folder / "p.jsonl", "cache": folder / "cache", "label": "tiny"}
    return ApiRequest(**{**settings, **files, "limit": N, "concurrency": 3, **changes})


def run(wanted: ApiRequest) -> Outcome:
    return predict_api.predict(wanted, say=lambda line: None, **PATIENCE)


def meta(wanted: ApiRequest) -> dict[str, Any]:
    return json.loads(wanted.out.with_name(f"{wanted.out.stem}.meta.json").read_text())


def test_the_file_is_that_of_any_model_in_the_order_of_the_records(tmp_path: Path) -> None:
    with serve({0: server.slow(0.2), 2: server.status(500)}) as state:
        wanted = request(state, tmp_path)
        outcome = run(wanted)
    lines = [json.loads(line) for line in wanted.out.read_text().splitlines()]
    assert outcome == Outcome(N, {}, 0, None, ())
    assert [line["id"] for line in lines] == [record.id for record in RECORDS]
    prompt = TASK.baseline_prompt(RECORDS[0], [])
    latency = lines[0].pop("latency_s")
    assert 0.0 < latency < 10.0
    assert lines[0] == {
        "id": RECORDS[0].id,
        "completion": _cut(prompt[::-1]),
        "model": "tiny",
        "prompt_tokens": len(prompt),
        "completion_tokens": 3,
        "finish_reason": "stop",
        "task_version": TASK.version,
        "snapshot": "tiny-2026-01-01",
    }
    assert (meta(wanted)["cost_usd"], meta(wanted)["answers_cost_usd"]) == (0.0, None), "no API charged this machine"


def _cut(text: str) -> str:
    return min((text.split(stop)[0] for stop in TASK.baseline_stop), key=len)


def test_the_meta_file_has_the_bill(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("tiny: {input: 2, output: 10, as_of: 2026-11-22}\n")
    with serve({1: server.status(429), 4: server.raw(b"{")}) as state:
        wanted = request(state, tmp_path, price_file=prices)
        run(wanted)
        facts = meta(wanted)
        again = request(state, tmp_path, price_file=prices, out=tmp_path / "again.jsonl")
        assert run(again).complete
        assert len(state.seen) == N + 2
    tokens = sum(len(TASK.baseline_prompt(record, [])) for record in RECORDS)
    cost = (2 * tokens + 10 * 3 * N) / 1e6
    assert {name: facts[name] for name in ("calls", "retries", "lost", "prompt_tokens", "completion_tokens")} == {
        "calls": N + 2,
        "retries": 2,
        "lost": 0,
        "prompt_tokens": tokens,
        "completion_tokens": 3 * N,
    }
    assert facts["faults"] == {"malformed": 1, "rate_limited": 1}
    assert (facts["cost_usd"], facts["answers_cost_usd"]) == pytest.approx((cost, cost), rel=1e-12)
    assert facts["cost_usd_at_most"] > facts["cost_usd"]
    assert facts["price"]["as_of"] == "2026-11-22"
    assert facts["snapshots"] == {"tiny-2026-01-01": N}
    assert facts["latency_s"] > 0
    from_cache = meta(again)
    assert (from_cache["calls"], from_cache["cost_usd"]) == (0, 0.0)
    assert from_cache["answers_cost_usd"] == facts["answers_cost_usd"]
    assert again.out.read_text() == wanted.out.read_text(), "the second run is the first to the byte"


def _with_repetitions(task: Task) -> Task:
    """Asks the same of records in threes."""
    numbers = {record.id: place // 3 for place, record in enumerate(RECORDS)}
    return replace(task, baseline_prompt=lambda record, shots: f"question {numbers[record.id]}")


@pytest.mark.parametrize("cut", [0, 2, 5])
def test_equal_questions_are_in_the_cost_once_as_they_are_in_the_ledger(tmp_path: Path, cut: int) -> None:
    """Also where a line of the file is lost and its question is answered from the ledger."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("tiny: {input: 2, output: 10}\n")
    with serve() as state:
        wanted = request(state, tmp_path, price_file=prices, task=_with_repetitions(TASK))
        run(wanted)
        lines = wanted.out.read_text().splitlines(keepends=True)
        if cut:
            wanted.out.write_text("".join(lines[:cut] + lines[cut + 1 :]))
            run(wanted)
        assert len(state.seen) == N // 3
    facts, rows = meta(wanted), list(read_predictions(wanted.out).by_id.values())
    assert (facts["calls"], facts["answers"], facts["shared"]) == (N // 3, N, N - N // 3)
    assert facts["answers_cost_usd"] == pytest.approx(facts["cost_usd"], rel=1e-12)
    assert facts["cost_usd"] == pytest.approx((2 * 10 + 10 * 3) * N / 3 / 1e6, rel=1e-12)
    assert usage({}, rows, None).cost_per_1000_usd == pytest.approx(1000 * facts["cost_usd"] / N, rel=1e-12)
    assert wanted.out.read_text() == "".join(lines)


def test_a_rejected_record_is_missing_with_its_reason_and_a_long_one_is_declined(tmp_path: Path) -> None:
    reject = {3: server.status(400, {"message": "no such token"}), 5: server.status(422, {"message": "input too long"})}
    with serve(reject) as state:
        wanted = request(state, tmp_path, concurrency=1)
        outcome = run(wanted)
        assert (outcome.answered, outcome.missing, outcome.unanswered) == (N - 1, 1, {"rejected": 1})
        assert "rejected" in outcome.warnings[-1]
        assert "no such token" in outcome.warnings[-1]
        facts = meta(wanted)
        assert facts["unanswered_why"] == {"rejected": "400: no such token"}
        assert facts["declined"] == {"prompt_too_long": 1}
        state.script = {N: server.status(400, {"message": "no such token"})}
        assert run(wanted).missing == 1, "a run with nothing but a rejected record ends, and blames no one else"
        assert run(wanted).complete
        assert len(state.seen) == N + 2


def test_a_budget_stops_cleanly_and_more_of_it_goes_on(tmp_path: Path) -> None:
    with serve() as state:
        first = run(request(state, tmp_path, budget=Budget(requests=5)))
        assert (first.answered, first.missing) == (5, N - 5)
        assert "5 requests" in str(first.stopped)
        assert run(request(state, tmp_path, budget=Budget(requests=5))).answered == 5
        assert len(state.seen) == 5
        wanted = request(state, tmp_path, budget=Budget(requests=N))
        assert run(wanted).complete
        assert len(state.seen) == N
    assert meta(wanted)["calls"] == N
    assert list(read_predictions(wanted.out).by_id) == [record.id for record in RECORDS]


def test_a_torn_last_line_is_cut_off_and_answered_from_the_cache(tmp_path: Path) -> None:
    with serve() as state:
        wanted = request(state, tmp_path)
        run(wanted)
        whole = wanted.out.read_bytes()
        wanted.out.write_bytes(whole[:-20])
        assert run(wanted).complete
        assert len(state.seen) == N
    assert wanted.out.read_bytes() == whole


def test_unanswered_records_are_missing_and_asked_again(tmp_path: Path) -> None:
    with serve(dict.fromkeys(range(3), server.status(500))) as state:
        wanted = request(state, tmp_path, concurrency=1)
        outcome = run(wanted)
        assert (outcome.answered, outcome.missing, outcome.unanswered) == (N - 1, 1, {"server_error": 1})
        assert run(wanted).complete
        assert len(state.seen) == N + 3


def test_declined_and_foreign_answers_are_said(tmp_path: Path) -> None:
    script = {0: server.answer(content=None, refusal="No."), 1: server.answer(model="huge")}
    with serve(script) as state:
        outcome = run(request(state, tmp_path, concurrency=1))
    assert outcome.complete
    first, second, third = outcome.warnings
    assert "asked for 'tiny', answered by 'huge'" in first
    assert "several snapshots" in second
    assert "1 prompts were declined" in third
    refused = read_predictions(tmp_path / "p.jsonl").by_id[RECORDS[0].id]
    assert (refused.completion, refused.extra["declined"]) == ("No.", "refusal")


@pytest.mark.parametrize(
    "change", [{"shots": 2}, {"split": "valid"}, {"endpoint": endpoint("openai:b", "http://x/v1")}]
)
def test_predictions_of_another_setting_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with serve() as state:
        run(request(state, tmp_path))
        before = (tmp_path / "p.jsonl").read_bytes()
        with pytest.raises(UserError, match="another"):
            run(request(state, tmp_path, **change))
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_a_file_whose_ledger_is_gone_is_not_continued(tmp_path: Path) -> None:
    with serve() as state:
        run(request(state, tmp_path, budget=Budget(requests=5)))
        with pytest.raises(UserError, match="--cache"):
            run(request(state, tmp_path, cache=tmp_path / "elsewhere", budget=Budget(requests=5)))
        assert len(state.seen) == 5


def test_worked_examples_come_from_train_and_do_not_depend_on_the_limit(tmp_path: Path) -> None:
    with serve() as state:
        run(request(state, tmp_path, shots=3, limit=1))
        run(request(state, tmp_path, shots=3, limit=2))
        assert len(state.seen) == 2
    shared = os.path.commonprefix([seen.prompt for seen in state.seen])
    shown = [record for record in load(TASK, "train", "bundled") if f"{record['ref']}\n" in shared]
    assert len(shown) == 3
    assert not {record["ref"] for record in shown} & {record["ref"] for record in load(TASK, "test", "bundled")}


def command(state: Server, folder: Path, *more: str) -> list[str]:
    where = ["--model", "openai:tiny", "--base-url", state.url, "--out", str(folder / "p.jsonl")]
    return ["predict", "--task", "viggo", "--split", "test", *where, "--limit", str(N), "--cache", str(folder), *more]


@pytest.mark.parametrize("after_answer", [False, True], ids=["while calls are under way", "between calls"])
def test_a_killed_run_goes_on_and_nothing_is_paid_twice(tmp_path: Path, after_answer: bool) -> None:
    """SIGKILL from inside the seventh request: before it is answered, or right behind the answer."""
    child: list[subprocess.Popen[bytes]] = []

    def kill(handler: server.Handler, seen: server.Seen) -> None:
        if after_answer:
            server.answer()(handler, seen)
        child[0].kill()
        child[0].wait(timeout=30)

    concurrency = "1" if after_answer else "3"
    with serve({6: kill}, server.slow(0.02)) as state:
        arguments = command(state, tmp_path, "--concurrency", concurrency)
        child.append(subprocess.Popen([sys.executable, "-m", "ray_jobs.cli", *arguments], stderr=subprocess.PIPE))
        assert child[0].wait(timeout=120) == -signal.SIGKILL, child[0].communicate()[1]
        child[0].communicate()
        assert main(arguments) == 0
        asked = Counter(seen.prompt for seen in state.seen)
    facts = json.loads((tmp_path / "p.meta.json").read_text())
    found = read_predictions(tmp_path / "p.jsonl")
    assert list(found.by_id) == [record.id for record in RECORDS]
    assert found.duplicates == 0
    assert facts["lost"] <= int(concurrency)
    assert facts["calls"] == N + facts["lost"], "open at the kill: sent, or about to be sent"
    assert len(state.seen) - N <= facts["lost"], "nothing that was answered was asked again"
    assert facts["prompt_tokens"] == sum(map(len, asked)), "every answer is in the bill once"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve() as state:
        assert main(command(state, tmp_path, "--max-requests", "4")) == 1
        assert "4 answered, 8 missing" in capsys.readouterr().err
        assert main(command(state, tmp_path, "--budget-usd", "0.01")) == 0, "a model on this machine is free"
        assert capsys.readouterr().out.strip() == str(tmp_path / "p.jsonl")
        for mistake in (
            ["--prompt", "structured"],
            ["--omit", "model"],
            ["--budget-usd", "-1"],
            ["--concurrency", "0"],
        ):
            assert main(command(state, tmp_path, *mistake)) == 2
        assert len(state.seen) == N
        with_price = [sys.executable, "-c", "import sys; from ray_jobs.cli import main; main(sys.argv[1:]);"]
        with_price[-1] += "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
        done = subprocess.run([*with_price, *command(state, tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == 0, "an API model starts no Ray and loads no torch"


def test_the_identity_names_all_that_decides_the_answers(tmp_path: Path) -> None:
    with serve() as state:
        found = request(state, tmp_path).identity
    body = Chat("x", TASK.max_new_tokens, TASK.baseline_stop).body(endpoint("openai:tiny", state.url))
    assert set(body) - {"messages"} <= set(found)
    assert {"task", "task_version", "task_options", "split", "source", "shots", "base_url"} <= set(found)


def test_without_a_role_the_label_decides_and_files_with_one_go_on(tmp_path: Path) -> None:
    with serve() as state:
        wanted = request(state, tmp_path, label="tuned, served")
        run(replace(wanted, role="other"))
        assert meta(wanted)["role"] == "other"
        run(wanted)
        assert len(state.seen) == N
    assert role_of(Entry(wanted.label, wanted.out, details=meta(wanted))) == "tuned"


def test_the_time_of_a_killed_run_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk before the run ends is what a SIGKILL leaves."""
    monkeypatch.setattr(prediction_file, "KEEP_TIME_S", 0.05)
    left: list[float] = []

    def look(handler: server.Handler, seen: server.Seen) -> None:
        left.append(meta(wanted)["seconds"])
        server.answer()(handler, seen)

    with serve({N - 1: look}, server.slow(0.05)) as state:
        wanted = request(state, tmp_path, concurrency=1)
        run(wanted)
    assert 0.05 <= left[0] <= meta(wanted)["seconds"]


def test_a_second_run_on_the_same_file_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    """Each would have the whole budget, and pay for the other's questions again."""
    refused: list[str] = []

    def second(handler: server.Handler, seen: server.Seen) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ray_jobs.cli", *command(state, tmp_path)], capture_output=True, timeout=120
        )
        refused.append(f"{done.returncode} {done.stderr.decode()}")
        server.answer()(handler, seen)

    with serve({2: second}) as state:
        wanted = request(state, tmp_path, budget=Budget(requests=N), concurrency=1)
        assert run(wanted).complete
        assert run(wanted).complete, "an ended run holds nothing"
        assert len(state.seen) == N
    assert refused[0].startswith("2 ")
    assert "in use by another run" in refused[0]


def test_another_model_behind_the_same_local_url_answers_a_new_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "CACHE", tmp_path / "common")
    with serve({}, server.answer(content="old")) as state:

        def ask(name: str, *more: str) -> tuple[set[str], int, str]:
            out = tmp_path / f"{name}.jsonl"
            where = ["--model", "openai:tiny", "--base-url", state.url, "--out", str(out), "--limit", "3"]
            assert main(["predict", "--task", "viggo", "--split", "test", *where, *more]) == 0
            answers = {row.completion for row in read_predictions(out).by_id.values()}
            return answers, len(state.seen), capsys.readouterr().err

        assert "cache" not in ask("before")[2]
        state.otherwise = server.answer(content="new")
        assert ask("after")[:2] == ({"new"}, 6)
        assert not (tmp_path / "common").exists()
        (tmp_path / "after.jsonl").unlink()
        answers, asked, said = ask("after")
        assert (answers, asked) == ({"new"}, 6)
        assert re.search(r"3 answers from the cache, asked on 20[-\d]+ [\d:]+ UTC \.\. 20[-\d]+ [\d:]+ UTC", said)
        assert ask("begun", "--cache", str(tmp_path / "common"))[1] == 9
        (tmp_path / "begun.jsonl").write_text("")
        assert ask("begun")[1] == 9, "a file that was begun with the common cache goes on with it"


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.2:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://192.168.0.7:8000/v1", True),
        ("http://gpu-node-3:8000/v1", True),
        ("http://gpu.cluster.local/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://8.8.8.8/v1", False),
    ],
)
def test_private_addresses(url: str, private: bool) -> None:
    assert endpoint("openai:tiny", url).private == private
