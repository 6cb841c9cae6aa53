"""Reading rows: every format as it is written, and a bad row says where it stands, what came and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.base import UserError
from tasks.row_files import read_rows


def test_json_file_with_one_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text('{"ref": "A"}\n{"ref": "B"}\n')
    assert [row.cells for row in read_rows(path)] == [{"ref": "A"}, {"ref": "B"}]


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    for name, text in (("a.csv", "mr,ref\n\ninform(),A\n"), ("a.jsonl", '\n{"mr": "inform()", "ref": "A"}\n\n')):
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        assert next(read_rows(tmp_path / name)).cells == {"mr": "inform()", "ref": "A"}


def test_csv_cell_of_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("mr,ref\ninform()," + "A" * 1_000_000)
    assert [len(row.cells["ref"]) for row in read_rows(path)] == [1_000_000]


def test_texts_that_look_like_nulls_or_numbers_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("a,b,c,d,e\nNone,NA,null,,007\n")
    assert [tuple(row.cells.values()) for row in read_rows(path)] == [("None", "NA", "null", "", "007")]


def test_places_count_rows_from_0_and_lines_from_1(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text('a,b\n1,"two\nlines"\n\n3,4\n')
    assert [row.place for row in read_rows(path)] == [f"{path} row 0 (line 2)", f"{path} row 1 (line 5)"]


def test_a_file_is_asked_for_before_its_rows_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_rows(tmp_path / "test.csv")


# file name: (its bytes, what came, what was wanted, how to mend it)
BAD = {
    "few_cells.csv": (b"mr,ref\ninform(),A\ninform()\n", r"row 1 \(line 3\): 1 cells", "2 cells", "quotes"),
    "many_cells.csv": (b"mr,ref\ninform(name[A], rating[good]),A\n", r"row 0 \(line 2\): 3 cells", "2 cells", "quotes"),
    "open_quote.csv": (b'mr,ref\ninform(),A\n"inform(),B\n', r"row 1 \(line 3\): ", "cells", "quotes"),
    "latin.csv": (b"mr,ref\ninform(),A\ninform(),Caf\xe9\n", r"row 1 \(line 3\): byte 0xe9", "UTF-8", "convert"),
    "twice.csv": (b"mr,ref,ref\n1,2,3\n", r"header \(line 1\): column 'ref' twice", "different name", "rename"),
    "empty.csv": (b"", "without a row", "one row", "whole"),
    "header_only.csv": (b"mr,ref\n", "without a row", "one row", "whole"),
    "broken.jsonl": (
        b'{"mr": "inform()", "ref": "A"}\n\n{"mr":\n',
        r"row 1 \(line 3\): invalid JSON",
        "object",
        "line",
    ),
    "list.jsonl": (b"[1, 2]\n", r"row 0 \(line 1\): a JSON list", "object", "column"),
    "latin.jsonl": (b'{"mr": "inform()", "ref": "\xe9"}\n', r"row 0 \(line 1\): byte 0xe9", "UTF-8", "convert"),
    "deep.jsonl": (b"[" * 100_000, r"row 0 \(line 1\): invalid JSON", "object", "line"),
    "broken.json": (b'[{"mr": 1},\n', r"broken.json: invalid JSON", "list of objects", "correct"),
    "numbers.json": (b"[1]", r"row 0: a JSON int: 1", "object", "column"),
    "latin.json": (b'[\n"\xe9"]', r"line 2: bytes that are not UTF-8", "UTF-8", "convert"),
    "pretty.json": (b'{\n "mr": 1}', r"row 0 \(line 1\): invalid JSON", "one JSON object per line", "line"),
    "broken.parquet": (b"PAR1 no", "at row 0", "whole Parquet file", "again"),
    "notes.txt": (b"x", "ending in .txt", ".csv, .json, .jsonl, .parquet", "convert"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_says_where_what_and_how_to_mend_it(tmp_path: Path, name: str) -> None:
    data, got, wanted, fix = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=got) as error:
        list(read_rows(path))
    assert str(path) in error.value.got
    assert wanted in error.value.wanted
    assert fix in error.value.fix
