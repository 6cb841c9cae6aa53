"""Write a new task: a task file, a fixture and a test that pass as they are, for you to change into your own."""

from __future__ import annotations

import argparse
import keyword
import os
import re
import sys
from pathlib import Path

from ray_jobs.commands import recipe
from tasks.base import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME and where to write."""
    parser.add_argument("name", help="name of the task, in small letters: ticket_labels")
    parser.add_argument("--dir", type=Path, default=Path(), help="folder; `tasks` in a checkout of fulltune")


def run(arguments: argparse.Namespace) -> int:
    """Writes three files, and prints them and what to do next."""
    name, folder = arguments.name, arguments.dir.expanduser()
    _check_name(name)
    files = _targets(name, folder)
    if existing := [path for path in files.values() if path.exists()]:
        raise UserError(
            got=f"{existing[0]}, which exists already",
            wanted="a name whose files are not there yet; nothing was written",
            fix="choose another name or --dir, or remove the file",
        )
    try:
        for template, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_rendered(template.read_text(encoding="utf-8"), name, files), encoding="utf-8")
            print(path)
    except OSError as error:
        raise UserError(
            got=f"--dir {folder}: {error.strerror}", wanted="a folder that can be written", fix="choose another --dir"
        ) from error
    recipe.say(_next_steps(name, files))
    return 0


def _check_name(name: str) -> None:
    import tasks

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        raise UserError(
            got=f"task name {name!r}",
            wanted="a Python name in small letters, digits and _, not one of the language or its standard library",
            fix=f"for instance {near}" if re.fullmatch(r"[a-z][a-z0-9_]*", near) and near != name else "choose another",
        )
    if name in tasks.names():
        raise UserError(
            got=f"task name {name!r}, which is taken",
            wanted=f"a name other than {', '.join(tasks.names())}",
            fix="choose another; it is also the first part of every record id",
        )


def _targets(name: str, folder: Path) -> dict[Path, Path]:
    """Template -> file to write. In a checkout the test and its fixture go where its tests are."""
    import tasks

    templates = Path(tasks.__file__).parent / "template"
    tests = folder.parent / "tests" if _is_checkout(folder) else None
    return {
        templates / "my_task.py": folder / f"{name}.py",
        templates / "my_task.json": (tests / "fixtures" / "tasks" if tests else folder) / f"{name}.json",
        templates / "test_my_task.py": (tests / "tasks" if tests else folder) / f"test_{name}.py",
    }


def _is_checkout(folder: Path) -> bool:
    folder = folder.absolute()
    return folder.name == "tasks" and (folder / "base.py").is_file() and (folder.parent / "tests" / "tasks").is_dir()


def _rendered(text: str, name: str, files: dict[Path, Path]) -> str:
    """A template with the task's name, and the paths of the other files as seen from the test."""
    task_file, fixture, test = files.values()
    values = {
        "my_task.py": os.path.relpath(task_file, test.parent),
        "my_task.json": os.path.relpath(fixture, test.parent),
        "my_task": name,
    }
    return re.sub(r"my_task(\.py|\.json)?", lambda match: values[match.group()].replace(os.sep, "/"), text)


def _next_steps(name: str, files: dict[Path, Path]) -> str:
    task_file, fixture, test = files.values()
    reference = f"{task_file}:TASK"
    lines = f"""
It passes its tests as it is. Change it into your own task, a part at a time:
  python -m pytest {test}
  fulltune tasks {reference}
after a change to a prompt, the training text or the scorer, raise its version and pin it:
  fulltune tasks {reference} --pin {fixture}
in a recipe:
  task: {reference}
to try it in minutes, on its bundled rows or your own:
  fulltune train demo task={reference} ray.name={name}
  fulltune train demo task={reference} ray.name={name} data.source=path/to/rows"""
    if _is_checkout(task_file.parent):
        lines += f"""
to call it by its name, add to _BUILT_IN in {task_file.parent / "__init__.py"}:
  "{name}": "tasks.{name}:TASK","""
    return lines
