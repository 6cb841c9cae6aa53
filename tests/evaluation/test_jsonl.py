from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation import jsonl
from tasks.base import UserError


def test_reads_objects_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": 1}\n\n{"a": "x\u2028y"}\r\n'.encode())
    assert list(jsonl.read_objects(path)) == [(1, {"a": 1}), (3, {"a": "x\u2028y"})]


def test_offsets_lead_back_to_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": 1}\n\n{"a": "x\u2028y"}\r\n'.encode())
    for _, offset, value in jsonl.read_objects_at(path):
        with path.open("rb") as file:
            file.seek(offset)
            assert jsonl.parse_object(file.readline(), where="here") == value


@pytest.mark.parametrize(
    "line", [b'{"a": ', b"[1]", b"3", b'{"a": "\xff"}', b"[" * 100_000], ids=["cut", "list", "number", "latin", "deep"]
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
        list(jsonl.read_objects(path))


@pytest.mark.parametrize("name", ["absent.jsonl", "."])
def test_what_is_no_file_is_a_user_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="check the path"):
        list(jsonl.read_objects(tmp_path / name))


def test_dump_writes_only_what_json_can_hold() -> None:
    assert json.loads(jsonl.dump({"a": [float("nan"), 1.0], "b": Path("c")})) == {"a": ["nan", 1.0], "b": "c"}
    assert jsonl.dump("日本") == '"日本"'


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    jsonl.write_text(path, "old")
    with pytest.raises(TypeError), jsonl.atomic(path) as file:
        file.writelines(["new", 3])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
