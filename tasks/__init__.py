"""The registry of tasks: from a name to a `Task`, the first thing every command asks for.

A name is one of the built-in tasks, a task that an installed package offers under the entry point group
`fulltune.tasks`, or a file of the user's own (`path/to/file.py:TASK`). Task modules are imported when they are asked
for and not before, so that listing the tasks stays cheap.

    recipe `task:` -> get(name, **options) -> Task -> tasks.sources.load
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.base import Task, UserError

__all__ = ["ENTRY_POINT_GROUP", "get", "names"]

ENTRY_POINT_GROUP = "fulltune.tasks"

_BUILT_IN = {
    "viggo": "tasks.viggo:TASK",
    "sql_create_context": "tasks.sql_create_context:TASK",
    "gsm8k": "tasks.gsm8k:TASK",
}


def names() -> tuple[str, ...]:
    """Names of the built-in tasks, then those of installed packages in alphabetical order."""
    return (*_BUILT_IN, *sorted(set(_installed()) - set(_BUILT_IN)))


def get(name: str, **options: Any) -> Task:
    """The task of that name, under the given options.

    Args:
        name: a name out of `names()`, or `path/to/file.py:TASK` (`:TASK` may be left out).
        options: settings that the task declares in `Task.options`.

    Raises:
        UserError: no such task or file, the file or package cannot be imported, or an option the task does not have.
    """
    task = _find(name)
    return _configured(task, options) if options else task


def _find(name: str) -> Task:
    path, attribute = _split_reference(name)
    if path.endswith(".py"):
        return _from_file(Path(path).expanduser(), attribute or "TASK")
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return _checked(getattr(importlib.import_module(module), attribute), f"built-in task {name!r}")
    installed = _installed()
    if name in installed:
        return _from_entry_point(installed[name])
    raise UserError(
        got=f"task {name!r}",
        wanted=f"one of {', '.join(names())}, or a file such as my_task.py:TASK",
        fix=_nearest(name, names()) or "`fulltune tasks` lists them; `fulltune new-task NAME` writes a new one",
    )


def _split_reference(name: str) -> tuple[str, str]:
    """`dir/file.py:TASK` -> (`dir/file.py`, `TASK`); a name without a colon has no attribute."""
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and head.endswith(".py") else (name, "")


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _from_entry_point(entry: EntryPoint) -> Task:
    try:
        found = entry.load()
    except Exception as error:
        raise UserError(
            got=f"task {entry.name!r} of an installed package failed to load {entry.value}: {_one_line(error)}",
            wanted=f"an entry point of group {ENTRY_POINT_GROUP} that imports",
            fix="mend or uninstall the package that declares it",
        ) from error
    return _checked(found, f"entry point {entry.name} = {entry.value}")


def _from_file(path: Path, attribute: str) -> Task:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.0)
        raise UserError(
            got=f"task file {path}, which does not exist",
            wanted="a Python file that defines TASK",
            fix=f"did you mean {path.parent / near[0]}?" if near else "check the path; `fulltune new-task` writes one",
        )
    module = _import_file(path)
    if not hasattr(module, attribute):
        raise UserError(
            got=f"{path} without a {attribute}",
            wanted=f"{attribute} = Task(...) at the top level of the file",
            fix=f"name the task {attribute}, or give its name after the colon: {path}:NAME",
        )
    return _checked(getattr(module, attribute), f"{attribute} in {path}")


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name made from its path, so that two files called `task.py` do not collide.

    Always from its source: Python's bytecode cache would not see an edit of the same length within a second.
    """
    resolved = path.resolve()
    module_name = f"fulltune_task_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, resolved)
    assert spec is not None
    assert isinstance(spec.loader, SourceFileLoader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up while the file is still being executed
    try:
        exec(spec.loader.source_to_code(spec.loader.get_data(str(resolved)), str(resolved)), module.__dict__)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(
            got=f"{path} failed to import: {_one_line(error)}",
            wanted="a file that imports without error",
            fix=f"run `python {path}` to see the whole traceback",
        ) from error
    return module


def _checked(found: object, where: str) -> Task:
    if isinstance(found, Task):
        return found
    raise UserError(
        got=f"{where} is a {type(found).__name__}",
        wanted="an instance of tasks.base.Task",
        fix="build it with Task(name=..., version=..., ...)",
    )


def _configured(task: Task, options: dict[str, Any]) -> Task:
    for option in options:
        if option not in task.options:
            known = ", ".join(task.options) or "none"
            raise UserError(
                got=f"option {option!r} for task {task.name!r}",
                wanted=f"an option of this task: {known}",
                fix=_nearest(option, tuple(task.options)) or "remove it",
            )
    assert task.configure is not None, f"task {task.name!r} declares options but no configure()"
    try:
        return task.configure(**options)
    except (TypeError, ValueError) as error:
        raise UserError(
            got=f"options {options!r} for task {task.name!r}: {_one_line(error)}",
            wanted=f"values like the defaults: {dict(task.options)!r}",
            fix="correct the value",
        ) from error


def _nearest(name: str, known: tuple[str, ...]) -> str | None:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
