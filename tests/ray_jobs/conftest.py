"""A tiny recipe for tests that start real Ray clusters, and ways to watch and to end what they started."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.tiny import MODEL
from fulltune import metrics

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 5

RECIPE: dict[str, Any] = {
    "task": "viggo",
    "model": MODEL,
    # one example per micro-batch keeps a step long enough to be interrupted
    "data": {"limit": 300, "packing": False},
    "train": {"learning_rate": 3e-3, "num_epochs": 10, "max_steps": 60, "global_batch_size": 24},
    "deepspeed": "zero2",
    # spare processes would import on the cores that train; tests that want them say so
    "ray": {"num_workers": 2, "cpus_per_worker": 0.5, "max_failures": 20, "standby": False},
    "checkpoint": {"every_steps": SAVE_EVERY, "keep_last": 2},
}


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def recipe(storage: Path) -> Path:
    path = storage / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"ray": RECIPE["ray"] | {"storage_path": str(storage)}}))
    return path


def curve(run: Path) -> list[tuple[int, str, str]]:
    """Every step with its loss and gradient norm, to the last bit."""
    return [(r["step"], float(r["loss"]).hex(), float(r["grad_norm"]).hex()) for r in metrics.read(run) if "loss" in r]


def progress(run: Path) -> tuple[int, int]:
    """Attempt and step of the last line logged; (0, 0) before there is one."""
    last = [record for record in metrics.read(run) if "loss" in record][-1:]
    return (last[0]["attempt"], last[0]["step"]) if last else (0, 0)


def wait_until(condition: Callable[[], bool], *, bound_s: float, what: str) -> None:
    """Polls; a bound that is reached fails the test with what was waited for."""
    deadline = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {bound_s:.0f} s for {what}"
        time.sleep(0.02)


def kill_worker(run: Path, rank: int) -> None:
    """SIGKILL to one training worker of this run."""
    os.kill(json.loads((run / "workers" / f"{rank}.json").read_text())["pid"], signal.SIGKILL)


def start_driver(recipe: Path, *overrides: str, log: Path) -> subprocess.Popen[bytes]:
    """`python -m ray_jobs.train` as a user would start it, in a session of its own."""
    with log.open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.train", str(recipe), *overrides],
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture(scope="session")
def drive(storage: Path) -> Callable[..., int]:
    """drive(recipe, *overrides): trains as a user would and returns the exit code; what was said goes to pytest."""

    def run(recipe: Path, *overrides: str, bound_s: float = 600) -> int:
        log = storage / "drive.log"
        process = start_driver(recipe, *overrides, log=log)
        try:
            return process.wait(timeout=bound_s)
        finally:
            print(log.read_text()[-3000:])
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    return run


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible endpoint that answers every question alike, and counts them."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            message = {"role": "assistant", "content": "inform(name[x])"}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 50, "completion_tokens": 6, "total_tokens": 56}
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": question["model"]}
            data = json.dumps(body | {"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
