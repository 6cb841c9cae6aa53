"""The universal form is made once, by one worker, and only of the checkpoint that it belongs to."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fulltune import checkpoint, comm, commit, reshape
from fulltune.saver import Saver
from tasks.base import UserError

# tests/ is not a package: the helpers beside this file are loaded by path
_SPEC = importlib.util.spec_from_file_location("workers", Path(__file__).with_name("workers.py"))
helpers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helpers)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reshape, "POLL_S", 0.01)


@pytest.fixture
def found(tmp_path):
    save(tmp_path, b"first")
    return checkpoint.latest(tmp_path, peers=comm.Workers(), say=print)


def save(root, content):
    one = Saver(root, comm.Workers(), 2, False, print)
    one.save(1, lambda _: helpers.ready(content=content, rank=0), meta={}, last=False)


class Converter:
    """Joins nothing, but counts."""

    def __init__(self, error=None):
        self.calls, self.error = 0, error

    def __call__(self, source, out):
        self.calls += 1
        if self.error is not None:
            raise self.error
        (out / "joined.pt").write_bytes((source / "shard-0.pt").read_bytes() * 2)
        return [out / "joined.pt"]


def universal(found, convert, size=3):
    said = []
    return helpers.together(size, lambda member: reshape.universal(found, member, convert, said.append))


def test_it_is_made_once_for_all_workers_and_kept(found):
    convert = Converter()
    for _ in range(2):
        folders = universal(found, convert)
        assert folders == [found.path.with_name("universal-step-00000001")] * 3
        assert (folders[0] / "joined.pt").read_bytes() == b"firstfirst"
    assert convert.calls == 1
    assert not list(found.path.parent.glob(".stage-*"))


@pytest.mark.parametrize("file", ["joined.pt", "manifest.json"])
def test_one_that_was_changed_is_made_again(found, file):
    convert = Converter()
    folder = universal(found, convert)[0]
    (folder / file).write_bytes(b"{}")
    assert (universal(found, convert)[0] / "joined.pt").read_bytes() == b"firstfirst"
    assert convert.calls == 2


def test_one_of_an_undone_future_is_made_again(found):
    convert = Converter()
    universal(found, convert)
    save(found.path.parent, b"other")
    assert (universal(found, convert)[0] / "joined.pt").read_bytes() == b"otherother"
    assert convert.calls == 2


def test_an_error_reaches_all_workers_and_leaves_nothing(found):
    for error in universal(found, Converter(ValueError("odd shapes"))):
        assert isinstance(error, RuntimeError)
        assert "odd shapes" in str(error)
    assert sorted(path.name for path in found.path.parent.iterdir()) == ["pointer.json", "step-00000001"]


def test_without_room_all_workers_say_what_is_missing(found, monkeypatch):
    monkeypatch.setattr(commit, "free_bytes", lambda _: 1)
    convert = Converter()
    for error in universal(found, convert):
        assert isinstance(error, UserError)
        assert "resume with as many workers as before" in error.fix
    assert convert.calls == 0
