"""tasks.sources: every source and file format gives the same records, and a bad row says where it stands."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tasks
from tasks.base import HubSource, Record, Task, UserError
from tasks.sources import iterate_references, load, load_with_report, read_references

VIGGO = tasks.get("viggo")
ROWS = [
    {"mr": "inform(name[None])", "ref": "None is a game."},
    {"mr": "inform(name[NA, null], rating[good])", "ref": 'NA, null is "good",\nthey say.'},
    {"mr": "confirm(name[Caf\u00e9])", "ref": "Caf\u00e9?"},
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "csv": write_csv,
    "json": write_json,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    def write_rows(rows: list[dict[str, Any]], stem: str = "test") -> Path:
        path = tmp_path / f"{stem}.{request.param}"
        WRITERS[request.param](path, rows)
        return path

    return write_rows


@pytest.fixture
def carving() -> Task:
    """ViGGO as if the hub had one split: the task carves by the last letter of the sentence."""
    by_letter = {"a": "train", "b": "valid", "c": "test"}
    hub = HubSource("x/y", splits={"train": "train", "valid": "train", "test": "train"})
    return dataclasses.replace(VIGGO, carve=lambda row: by_letter[row["ref"][-1]], hub=hub)


def row(ref: str, **more: Any) -> dict[str, Any]:
    return {"mr": f"inform(name[{ref}])", "ref": ref, **more}


def ids(records: list[Record]) -> list[str]:
    return [record.id for record in records]


# --- files


def test_every_format_gives_the_same_records(write: Callable[..., Path]) -> None:
    path = write(ROWS)
    expected = [Record(f"viggo-valid-{i}", cells) for i, cells in enumerate(ROWS)]
    assert load(VIGGO, "valid", str(path)) == expected


def test_references_take_the_split_from_the_file_name(write: Callable[..., Path]) -> None:
    path = write(ROWS, stem="held_out")
    assert ids(read_references(VIGGO, path)) == ["viggo-held_out-0", "viggo-held_out-1", "viggo-held_out-2"]
    assert ids(read_references(VIGGO, path, split="test", limit=1)) == ["viggo-test-0"]


def test_references_come_one_by_one_as_they_come_all_at_once(
    write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write([*ROWS, {**ROWS[0], "mr": "no function"}])
    assert list(iterate_references(VIGGO, path)) == read_references(VIGGO, path)
    assert list(iterate_references(VIGGO, path, split="test"))[0].id == "viggo-test-0"
    assert "1 rows not usable" in caplog.text


def test_references_before_a_bad_row_have_come(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + '{"mr": \n')
    rows = iterate_references(VIGGO, path)
    assert next(rows).id == "viggo-test-0"
    with pytest.raises(UserError, match="line 2"):
        next(rows)


def test_hub_columns_are_understood_and_extra_ones_kept(write: Callable[..., Path]) -> None:
    path = write([{"gem_id": "g-1", "meaning_representation": "inform(name[A])", "target": "A."}])
    (record,) = read_references(VIGGO, path)
    assert record == Record("viggo-test-0", {"gem_id": "g-1", "mr": "inform(name[A])", "ref": "A."})


def test_the_task_columns_win_over_the_hub_columns(write: Callable[..., Path]) -> None:
    path = write([{"mr": "inform(name[A])", "ref": "A.", "target": "something else"}])
    (record,) = read_references(VIGGO, path)
    assert (record["ref"], record["target"]) == ("A.", "something else")


def test_column_map(write: Callable[..., Path]) -> None:
    path = write([{"answer": "inform(name[A])", "question": "A."}])
    (record,) = load(VIGGO, "test", str(path), columns={"answer": "mr", "question": "ref"})
    assert record.fields == {"mr": "inform(name[A])", "ref": "A."}


def test_the_column_map_wins_over_a_column_of_the_same_name(write: Callable[..., Path]) -> None:
    path = write([{"clean": "inform(name[A])", "ref": "A.", "mr": "as typed"}])
    (record,) = load(VIGGO, "test", str(path), columns={"clean": "mr"})
    assert record.fields == {"mr": "inform(name[A])", "ref": "A."}


def test_own_ids_are_kept(write: Callable[..., Path]) -> None:
    path = write([row("A", id="x7"), row("B", id=""), row("C", id="x9")])
    assert ids(read_references(VIGGO, path)) == ["x7", "viggo-test-1", "x9"]


def test_an_id_that_comes_twice_is_refused(write: Callable[..., Path]) -> None:
    path = write([row("A", id="x7"), row("B", id="x8"), row("C", id="x7")])
    with pytest.raises(UserError, match=r"row 2.*'x7', which .*row 0"):
        read_references(VIGGO, path)


def test_index_counts_rejected_rows_and_the_report_names_them(
    write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write([row("A"), {"mr": "not a function", "ref": "B"}, row("C"), row("D")])
    loaded = load_with_report(VIGGO, "test", str(path), limit=2)
    assert ids(loaded.records) == ["viggo-test-0", "viggo-test-2"]
    assert loaded.report.rejected == ("viggo-test-1",)
    assert loaded.report.rows == 3
    assert "1 of 3 rows not usable, for instance viggo-test-1" in caplog.text


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (2, 2), (3, 3), (9, 3), (None, 3)])
def test_limit_is_the_first_rows(write: Callable[..., Path], limit: int | None, count: int) -> None:
    assert ids(load(VIGGO, "test", str(write(ROWS)), limit=limit)) == [f"viggo-test-{i}" for i in range(count)]


def test_negative_limit() -> None:
    with pytest.raises(UserError, match="limit -1"):
        load(VIGGO, "test", "bundled", limit=-1)


def test_a_bad_row_beyond_the_limit_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row("A")) + "\nnot json\n")
    assert len(read_references(VIGGO, path, limit=1)) == 1


# --- mistakes

BAD_COLUMNS = {
    "no_column.csv": (b"mr,reff\ninform(),A\n", "columns mr, reff", "'ref' is missing", "'reff': 'ref'"),
    "null.jsonl": (b'{"mr": "inform()", "ref": null}\n', "without a value for 'ref'", "mr, ref", "fill"),
    "later.jsonl": (
        b'{"mr": "inform()", "ref": "A"}\n{"mr": "inform()"}\n',
        r"row 1 \(line 2\) with the columns mr",
        "'ref' is missing",
        "ref",
    ),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_bad_columns_say_where_what_and_how_to_mend_it(tmp_path: Path, name: str) -> None:
    data, got, wanted, fix = BAD_COLUMNS[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=got) as error:
        read_references(VIGGO, path)
    assert str(path) in error.value.got
    assert wanted in error.value.wanted
    assert fix in error.value.fix


@pytest.mark.parametrize("read", [read_references, lambda task, path: load(task, "test", str(path))])
def test_missing_file_names_the_nearest(tmp_path: Path, read: Callable[[Task, Path], object]) -> None:
    write_csv(tmp_path / "test.csv", ROWS)
    with pytest.raises(UserError, match=r"tset\.csv, which does not exist") as error:
        read(VIGGO, tmp_path / "tset.csv")
    assert str(tmp_path / "test.csv") in error.value.fix


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder that does not exist"):
        read_references(VIGGO, tmp_path / "no" / "test.csv")


def test_column_map_of_a_column_that_is_not_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "test.csv", [{"answer": "inform()", "question": "A"}])
    with pytest.raises(UserError, match="'anwser'") as error:
        read_references(VIGGO, tmp_path / "test.csv", columns={"anwser": "mr", "question": "ref"})
    assert "answer" in error.value.fix


@pytest.mark.parametrize("split", ["validation", "Test", ""])
def test_unknown_split(split: str) -> None:
    with pytest.raises(UserError, match="train, valid, test"):
        load(VIGGO, split, "bundled")


# --- folders


def test_folder_with_files_named_after_splits(tmp_path: Path) -> None:
    for stem in ("train", "validation", "test"):
        write_csv(tmp_path / f"{stem}.csv", [row(stem)])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".train.csv").write_text("hidden")
    for split, stem in (("train", "train"), ("valid", "validation"), ("test", "test")):
        (record,) = load(VIGGO, split, str(tmp_path))
        assert (record.id, record["ref"]) == (f"viggo-{split}-0", stem)


def test_shards_of_a_split_are_read_in_name_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [row("B")])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [row("A")])
    assert [(r.id, r["ref"]) for r in load(VIGGO, "train", str(tmp_path))] == [
        ("viggo-train-0", "A"),
        ("viggo-train-1", "B"),
    ]


def test_other_folders_are_the_union_of_their_files_and_carved(tmp_path: Path, carving: Task) -> None:
    write_csv(tmp_path / "b.csv", [row("3c"), row("4a")])
    write_jsonl(tmp_path / "a.jsonl", [row("0a"), row("1b"), row("2c")])
    found = {split: ids(load(carving, split, str(tmp_path))) for split in ("train", "valid", "test")}
    assert found == {
        "train": ["viggo-train-0", "viggo-train-4"],
        "valid": ["viggo-valid-1"],
        "test": ["viggo-test-2", "viggo-test-3"],
    }
    assert ids(load(carving, "test", str(tmp_path), limit=1)) == ["viggo-test-2"]


def test_splits_that_share_a_file_are_carved_and_others_not(tmp_path: Path, carving: Task) -> None:
    write_csv(tmp_path / "train.csv", [row("0a"), row("1b"), row("2c")])
    write_csv(tmp_path / "test.csv", [row("0a"), row("1c")])
    found = {split: [r["ref"] for r in load(carving, split, str(tmp_path))] for split in ("train", "valid", "test")}
    assert found == {"train": ["0a"], "valid": ["1b"], "test": ["0a", "1c"]}


def test_a_file_is_the_split_that_is_asked_for_even_if_the_task_carves(tmp_path: Path, carving: Task) -> None:
    write_csv(tmp_path / "all.csv", [row("0a"), row("1b"), row("2c")])
    assert len(load(carving, "test", str(tmp_path / "all.csv"))) == 3


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a data file"):
        load(VIGGO, "test", str(tmp_path))
    write_csv(tmp_path / "all.csv", ROWS)
    with pytest.raises(UserError, match="named after splits"):
        load(VIGGO, "test", str(tmp_path))
    write_csv(tmp_path / "train.csv", ROWS)
    with pytest.raises(UserError, match="a file for split 'test'"):
        load(VIGGO, "test", str(tmp_path))


# --- bundled and hub


def test_task_without_bundled_data() -> None:
    with pytest.raises(UserError, match="brings no data"):
        load(dataclasses.replace(VIGGO, generate=None), "train", "bundled")


def test_hub_reads_the_mirror_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "viggo").mkdir()
    write_csv(tmp_path / "viggo" / "test.csv", ROWS)
    write_csv(tmp_path / "viggo" / "train.csv", ROWS)
    monkeypatch.setenv("FULLTUNE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would now raise
    with caplog.at_level(logging.WARNING):
        assert len(load(VIGGO, "test", "hub")) == len(load(VIGGO, "train", "hub")) == 3
    lines = [r.getMessage() for r in caplog.records if "FULLTUNE_DATA" in r.getMessage()]
    assert len(lines) == 1
    assert str(tmp_path / "viggo") in lines[0]


def test_mirror_without_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLTUNE_DATA", str(tmp_path))
    with pytest.raises(UserError, match="no folder viggo"):
        load(VIGGO, "test", "hub")


def fake_datasets(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.delenv("FULLTUNE_DATA", raising=False)


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        return [{"gem_id": "g", "meaning_representation": "inform(name[A])", "target": "A."}]

    fake_datasets(monkeypatch, load_dataset)
    (record,) = load(VIGGO, "valid", "hub")
    assert asked == [("GEM/viggo", None, "validation")]
    assert record == Record("viggo-valid-0", {"gem_id": "g", "mr": "inform(name[A])", "ref": "A."})


def test_hub_splits_that_are_one_at_the_hub_are_carved(monkeypatch: pytest.MonkeyPatch, carving: Task) -> None:
    fake_datasets(monkeypatch, lambda *_, split: [row("0a"), row("1b"), row("2c")])
    assert ids(load(carving, "test", "hub")) == ["viggo-test-2"]


def test_hub_data_set_that_is_a_script_is_read_from_its_converted_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, _: str | None, *, split: str, revision: str | None = None) -> list[dict[str, Any]]:
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found viggo.py")
        return [row(f"{name} {split} {revision}")]

    fake_datasets(monkeypatch, load_dataset)
    assert load(VIGGO, "test", "hub")[0]["ref"] == "GEM/viggo test refs/convert/parquet"


def test_other_errors_of_the_hub_client_are_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        raise RuntimeError("out of luck")

    fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(UserError, match="out of luck"):
        load(VIGGO, "test", "hub")
    assert len(asked) == 1


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(UserError, match="GEM/viggo could not be read: ConnectionError: no route to host") as error:
        load(VIGGO, "test", "hub")
    assert "FULLTUNE_DATA" in error.value.fix


def test_hub_of_a_task_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FULLTUNE_DATA", raising=False)
    with pytest.raises(UserError, match="source 'hub' for task viggo"):
        load(dataclasses.replace(VIGGO, hub=None), "test", "hub")


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "count"), [("train", 5103), ("valid", 714), ("test", 1083)])
def test_real_viggo(real_data: Path, monkeypatch: pytest.MonkeyPatch, split: str, count: int) -> None:
    monkeypatch.setenv("FULLTUNE_DATA", str(real_data))
    loaded = load_with_report(VIGGO, split, "hub")
    assert (len(loaded.records), loaded.report.rejected) == (count, ())
    assert ids(loaded.records) == [f"viggo-{split}-{i}" for i in range(count)]
    assert loaded.records == read_references(VIGGO, real_data / "viggo" / f"{split}.csv")
