"""A snapshot is the state of one moment: what training does afterwards does not reach it."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import torch

from fulltune.engine.snapshot import Recorder, Snapshot, host_copy


def test_later_steps_do_not_reach_the_copy():
    weight, scaler = torch.nn.Parameter(torch.arange(6.0)), SimpleNamespace(scale=2.0)
    state = OrderedDict(
        module={"w": weight, "part": weight[2:4]}, groups=[{"lr": 0.1}], loss_scaler=scaler, step=(1, 2)
    )
    copied = host_copy(state, {})
    with torch.no_grad():
        weight.add_(1.0)
    state["groups"][0]["lr"], scaler.scale = 0.2, 1.0
    assert type(copied) is OrderedDict
    assert torch.equal(copied["module"]["w"], torch.arange(6.0))
    assert torch.equal(copied["module"]["part"], torch.tensor([2.0, 3.0]))
    assert not copied["module"]["w"].requires_grad
    assert (copied["groups"], copied["loss_scaler"].scale, copied["step"]) == ([{"lr": 0.1}], 2.0, (1, 2))


def test_a_view_takes_only_its_own_bytes_and_equal_views_are_one():
    flat = torch.zeros(1000)
    copied = host_copy({"a": flat[:10], "b": flat[:10], "c": flat[10:20]}, {})
    assert copied["a"] is copied["b"]
    assert copied["a"].untyped_storage().nbytes() == 40


def test_tied_weights_are_copied_and_counted_once(tmp_path):
    embedding = torch.zeros(100)
    recorder = Recorder()
    recorder.create(SimpleNamespace(save_dir=str(tmp_path)))
    module = {"embed": embedding, "lm_head": embedding, "norm": torch.ones(5)}
    recorder.save({"module": module, "optimizer": [torch.ones(7)]}, str(tmp_path / "shard.pt"))
    assert Snapshot(recorder.states, tmp_path).bytes == 4 * (100 + 5 + 7)


def test_what_is_written_is_what_was_recorded(tmp_path):
    scratch = tmp_path / "scratch"
    (scratch / "state" / "offloaded").mkdir(parents=True)
    (scratch / "zero_to_fp32.py").write_text("print()")
    (scratch / "state" / "offloaded" / "swapped.bin").write_bytes(b"12345")
    recorder = Recorder()
    recorder.create(SimpleNamespace(save_dir=str(scratch)))
    recorder.save({"w": torch.ones(3)}, str(scratch / "state" / "shard.pt"))
    snapshot = Snapshot(recorder.states, scratch)
    assert snapshot.bytes == 12 + 5
    written = snapshot.write(tmp_path / "out")
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in written)
    assert names == ["state/offloaded/swapped.bin", "state/shard.pt"], "programs stay out"
    assert torch.equal(torch.load(written[0], weights_only=True)["w"], torch.ones(3))
    assert not scratch.exists()
