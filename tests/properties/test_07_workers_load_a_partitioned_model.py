"""Property 7: under ZeRO-3 a worker holds its share of every parameter while loading, never the whole model."""

from __future__ import annotations

from safetensors.torch import load_file


def test_each_of_two_workers_holds_half(tiny, launch):
    whole = sum(tensor.numel() for tensor in load_file(tiny.model / "model.safetensors").values())
    ranks = launch("partitioned", 2, base=tiny.base, model=tiny.model)
    for rank in ranks:
        assert rank["whole"] == whole
        assert rank["local"] == 0, "a full tensor stands beside its shard"
        assert rank["shard"] <= whole / 2 + 64 * 2, "shards are padded by at most a few elements each"
