"""tasks.get: built-in names, entry points of packages, files of the user, and what each mistake says."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import tasks
from tasks.base import Task, UserError

TASK_FILE = """
import dataclasses
from tasks.viggo import TASK as VIGGO

@dataclasses.dataclass
class Own:
    size: int = 1

def configure(size=1):
    if size < 0:
        raise ValueError(f"size {size} is negative")
    return dataclasses.replace(TASK, description=f"size {size}", options={"size": size})

TASK = dataclasses.replace(VIGGO, name="own", options={"size": 1}, configure=configure)
OTHER = dataclasses.replace(TASK, name="other")
NUMBER = 3
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_task.py"
    path.write_text(TASK_FILE)
    return path


@pytest.mark.parametrize("name", tasks.names())
def test_every_name_gives_the_task_of_that_name(name: str) -> None:
    assert tasks.get(name).name == name


def test_viggo_is_built_in() -> None:
    assert "viggo" in tasks.names()


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        tasks.get("vigo")
    assert "'vigo'" in error.value.got
    assert "viggo" in error.value.wanted
    assert "'viggo'" in error.value.fix


def test_unknown_name_that_is_near_to_nothing_says_where_to_look() -> None:
    with pytest.raises(UserError) as error:
        tasks.get("zzz")
    assert "fulltune tasks" in error.value.fix


@pytest.mark.parametrize(("suffix", "name"), [(":TASK", "own"), ("", "own"), (":OTHER", "other")])
def test_file(task_file: Path, suffix: str, name: str) -> None:
    assert tasks.get(f"{task_file}{suffix}").name == name


def test_relative_file(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task_file.parent)
    assert tasks.get("my_task.py:TASK").name == "own"


def test_two_files_of_one_name_do_not_collide(task_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "sub" / task_file.name
    other.parent.mkdir()
    other.write_text(TASK_FILE.replace('"own"', '"second"'))
    assert (tasks.get(str(task_file)).name, tasks.get(str(other)).name) == ("own", "second")


def test_missing_file_names_the_nearest(task_file: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as error:
        tasks.get(f"{task_file.parent}/my_tusk.py:TASK")
    assert str(task_file) in error.value.fix


def test_file_without_task(task_file: Path) -> None:
    with pytest.raises(UserError, match="without a MINE"):
        tasks.get(f"{task_file}:MINE")


def test_file_whose_task_is_something_else(task_file: Path) -> None:
    with pytest.raises(UserError, match="NUMBER in .* is a int"):
        tasks.get(f"{task_file}:NUMBER")


@pytest.mark.parametrize("text", ["import no_such_module_at_all", "def broken(:", "1 / 0"])
def test_file_that_fails_to_import(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(UserError, match="failed to import") as error:
        tasks.get(str(path))
    assert "Error" in error.value.got
    assert not {name for name in set(sys.modules) - before if name.startswith("fulltune_task_")}


def test_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        EntryPoint("another", "tasks.viggo:TASK", tasks.ENTRY_POINT_GROUP),
        EntryPoint("viggo", "os:sep", tasks.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_module_at_all:TASK", tasks.ENTRY_POINT_GROUP),
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "fulltune.tasks"
        return entries

    monkeypatch.setattr(tasks, "entry_points", entry_points)
    assert tasks.names()[-2:] == ("another", "broken")
    assert tasks.names().count("viggo") == 1
    assert tasks.get("another").name == "viggo"
    assert isinstance(tasks.get("viggo"), Task)  # a package cannot take the place of a built-in task
    with pytest.raises(UserError, match="no_such_module_at_all"):
        tasks.get("broken")


def test_a_task_of_an_installed_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real look-up, from the files that an installer leaves behind."""
    package, metadata = tmp_path / "parcels", tmp_path / "parcels-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own.py").write_text(TASK_FILE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: parcels\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[fulltune.tasks]\nown = parcels.own:TASK\nsplit = parcels.own:NUMBER\n[other]\nelse = parcels.own:OTHER\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tasks.names()[-2:] == ("own", "split")
    assert tasks.get("own", size=4).description == "size 4"
    with pytest.raises(UserError, match="entry point split = parcels.own:NUMBER is a int"):
        tasks.get("split")
    listed = subprocess.run(
        [sys.executable, "-c", "import tasks; print(tasks.get('own').name)"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(Path(tasks.__file__).parents[1])))},
    )
    assert listed.stdout == "own\n"  # a worker, which starts anew, finds it as well


def test_option(task_file: Path) -> None:
    assert tasks.get(str(task_file), size=4).description == "size 4"


def test_unknown_option_names_the_nearest(task_file: Path) -> None:
    with pytest.raises(UserError, match="'siz'") as error:
        tasks.get(str(task_file), siz=4)
    assert "'size'" in error.value.fix


def test_option_of_a_task_without_options() -> None:
    with pytest.raises(UserError, match="none"):
        tasks.get("viggo", size=4)


@pytest.mark.parametrize("size", [-1, "many"])
def test_bad_option_value(task_file: Path, size: object) -> None:
    with pytest.raises(UserError, match="size"):
        tasks.get(str(task_file), size=size)


def test_listing_names_imports_no_task() -> None:
    code = "import sys, tasks; tasks.names(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "tasks.base" in loaded
    assert not {"tasks.viggo", "datasets", "pyarrow", "torch"} & set(loaded)


def test_a_task_file_is_read_from_its_source_and_not_from_bytecode(tmp_path):
    """An edit of the same length within a second leaves Python's bytecode cache as it was."""
    import py_compile

    text = Path(tasks.__file__).with_name("template").joinpath("my_task.py").read_text()
    assert 'version="1"' in text
    file = tmp_path / "my_task.py"
    file.write_text(text)
    py_compile.compile(str(file))
    time = file.stat().st_mtime
    file.write_text(text.replace('version="1"', 'version="2"'))
    os.utime(file, (time, time))
    assert tasks.get(f"{file}:TASK").version == "2"
