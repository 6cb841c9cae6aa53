"""`fulltune new-task`: what it writes passes as written, outside and inside a checkout, and it never overwrites."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from ray_jobs.cli import main
from tasks.contract import check_task
from tasks.sources import load

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


def assert_clean(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_passes_outside_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-task", "ticket_labels", "--dir", "mine"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [
        "mine/ticket_labels.py",
        "mine/ticket_labels.json",
        "mine/test_ticket_labels.py",
    ]
    assert "fulltune tasks mine/ticket_labels.py:TASK" in printed.err
    assert "task: mine/ticket_labels.py:TASK" in printed.err
    done = python("pytest", "-q", "mine", cwd=tmp_path)
    assert_clean(done)
    assert "5 passed" in done.stdout
    task = tasks.get("mine/ticket_labels.py:TASK")
    assert task.name == "ticket_labels"
    assert load(task, "test", "bundled")[0].id == "ticket_labels-test-0"
    assert not [path for path in Path("mine").iterdir() if path.is_file() and "my_task" in path.read_text()]


@pytest.mark.parametrize("name", ["x", "a_task_with_a_rather_long_name_2"])
def test_what_is_written_is_clean(tmp_path: Path, name: str) -> None:
    assert main(["new-task", name, "--dir", str(tmp_path)]) == 0
    (tmp_path / "ruff.toml").write_text('extend = "' + str(ROOT / "pyproject.toml") + '"\n')
    assert_clean(python("ruff", "check", "--no-cache", ".", cwd=tmp_path))
    assert_clean(python("ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path))
    (tmp_path / "ruff.toml").write_text("")  # ruff's own defaults, as in somebody else's repository
    assert_clean(python("ruff", "check", "--no-cache", "--select", "E4,E7,E9,F,W,I,B,UP", ".", cwd=tmp_path))
    assert_clean(python("ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path))


@pytest.mark.slow
@pytest.mark.extended
def test_what_is_written_is_typed(tmp_path: Path) -> None:
    assert main(["new-task", "ticket_labels", "--dir", str(tmp_path)]) == 0
    assert_clean(python("mypy", "--strict", "ticket_labels.py", "test_ticket_labels.py", cwd=tmp_path))


def test_in_a_checkout_the_test_goes_to_the_tests(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "tasks", checkout / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "tests" / "tasks").mkdir(parents=True)
    before = files(checkout)
    assert main(["new-task", "ticket_labels", "--dir", str(checkout / "tasks")]) == 0
    written = files(checkout) - before
    assert written == {
        "tasks/ticket_labels.py",
        "tests/tasks/test_ticket_labels.py",
        "tests/fixtures/tasks/ticket_labels.json",
    }
    assert_clean(python("pytest", "-q", "tests/tasks/test_ticket_labels.py", cwd=checkout, path=checkout))


@pytest.mark.parametrize("taken", ["mine.py", "mine.json", "test_mine.py"])
def test_nothing_is_overwritten(tmp_path: Path, taken: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / taken).write_text("precious")
    assert main(["new-task", "mine", "--dir", str(tmp_path)]) == 2
    assert f"{tmp_path / taken}, which exists already" in capsys.readouterr().err
    assert files(tmp_path) == {taken}
    assert (tmp_path / taken).read_text() == "precious"


def test_a_folder_that_is_none_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("precious")
    assert main(["new-task", "mine", "--dir", str(tmp_path / "file")]) == 2
    assert "a folder that can be written" in capsys.readouterr().err
    assert files(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My-Task", "for instance my_task"),
        ("2fast", "a Python name"),
        ("class", "a Python name"),
        ("json", "a Python name"),
        ("../up", "for instance up"),
        ("", "a Python name"),
        ("viggo", "which is taken"),
    ],
)
def test_a_bad_name_is_a_user_error(tmp_path: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-task", name, "--dir", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert files(tmp_path) == set()


def test_a_task_of_its_own_is_found_when_changed(tmp_path: Path) -> None:
    """The written test notices a changed prompt, and `--pin` accepts it under a new version."""
    assert main(["new-task", "mine", "--dir", str(tmp_path)]) == 0
    file, fixture = tmp_path / "mine.py", tmp_path / "mine.json"
    file.write_text(file.read_text().replace("Read an order", "Read the order"))
    done = python("pytest", "-q", ".", cwd=tmp_path)
    assert done.returncode == 1
    assert "changed under version 1" in done.stdout
    assert main(["tasks", str(file), "--pin", str(fixture)]) == 2
    file.write_text(file.read_text().replace('version="1"', 'version="2"'))
    assert main(["tasks", str(file), "--pin", str(fixture)]) == 0
    assert list(json.loads(fixture.read_text())["versions"]) == ["1", "2"]
    assert_clean(python("pytest", "-q", ".", cwd=tmp_path))


def test_the_template_is_a_task_of_its_own() -> None:
    task = tasks.get(f"{ROOT / 'tasks' / 'template' / 'my_task.py'}:TASK")
    splits = {split: load(task, split, "bundled") for split in ("train", "valid", "test")}
    texts = [record["text"] for records in splits.values() for record in records]
    assert len(texts) == len(set(texts)) == 768
    check_task(task, splits["train"][:50])
