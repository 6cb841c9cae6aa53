"""A run that starts from another's export continues it; every other start is a beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fulltune import lineage


def made(folder: Path, base: str | None, **model: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"name_or_path": base} | model}))
    return folder


def test_stages_are_found_in_their_order_and_after_a_move(tmp_path: Path) -> None:
    first = made(tmp_path / "run" / "a", "some/model")
    second = made(tmp_path / "run" / "b", str(first / "export"))
    third = made(tmp_path / "run" / "c", str(second / "export"))
    assert lineage.folders(third) == [first, second, third]
    assert lineage.folders(first) == [first]
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert lineage.folders(moved / "c") == [moved / "a", moved / "b", moved / "c"]


@pytest.mark.parametrize("base", [None, "some/model", "/nowhere/run/export", "export"])
def test_what_is_no_export_of_a_run_is_a_beginning(tmp_path: Path, base: str | None) -> None:
    run = made(tmp_path / "run" / "a", base)
    assert lineage.folders(run) == [run]
    assert lineage.folders(tmp_path / "absent") == [tmp_path / "absent"]


def test_a_random_initialisation_takes_only_the_tokenizer_of_an_export(tmp_path: Path) -> None:
    first = made(tmp_path / "a", "some/model")
    second = made(tmp_path / "b", str(first / "export"), init="random")
    assert lineage.folders(second) == [second]


def test_runs_that_name_each_other_do_not_go_on_for_ever(tmp_path: Path) -> None:
    first = made(tmp_path / "a", str(tmp_path / "b" / "export"))
    second = made(tmp_path / "b", str(first / "export"))
    assert lineage.folders(second) == [first, second]
