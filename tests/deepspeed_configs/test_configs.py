"""Every shipped DeepSpeed file passes DeepSpeed's own parser, in every precision, at its number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deepspeed_configs

FOLDER = Path(deepspeed_configs.__file__).parent
STAGES = {"zero0": 0, "zero1": 1, "zero2": 2}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True}},
}
A10G_BYTES = 24 * 2**30
# name: (parameters, hidden size, workers) of the study's runs
LLAMA2 = {
    "llama2_7b": (6_738_415_616, 4096, 16),
    "llama2_13b": (13_015_864_320, 5120, 16),
    "llama2_70b": (68_976_648_192, 8192, 32),
}


def parse(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, world: int) -> Any:
    """DeepSpeed's reading of the file, completed with what fulltune's engine adds, in a world of that many workers."""
    import deepspeed.runtime.config as runtime

    fake = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda *_: world)
    monkeypatch.setattr(runtime, "dist", fake)
    batch = {"train_batch_size": world, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    parsed = runtime.DeepSpeedConfig({**config, **batch, "gradient_clipping": 1.0})
    assert parsed.world_size == world
    return parsed


def test_names_are_the_json_files() -> None:
    assert deepspeed_configs.names() == tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
    assert {*STAGES, *LLAMA2, "zero3", "zero3_offload", "zero3_offload_all"} <= set(deepspeed_configs.names())


def test_load_gives_a_fresh_copy() -> None:
    deepspeed_configs.load("zero2")["zero_optimization"]["stage"] = 9
    assert deepspeed_configs.load("zero2")["zero_optimization"]["stage"] == 2


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(LookupError, match=r"'zero3_ofload'.*did you mean 'zero3_offload'\?"):
        deepspeed_configs.load("zero3_ofload")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", deepspeed_configs.names())
def test_deepspeed_accepts_it(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = deepspeed_configs.load(name) | PRECISIONS[precision]
    parsed = parse(config, monkeypatch, world=LLAMA2[name][2] if name in LLAMA2 else 2)
    assert parsed.zero_optimization_stage == STAGES.get(name, 3)
    zero = parsed.zero_config.model_dump(by_alias=True)
    for key, value in config["zero_optimization"].items():
        if not isinstance(value, dict):
            assert zero[key] == value
    for kind in ("optimizer", "param"):
        wanted = config["zero_optimization"].get(f"offload_{kind}", {}).get("device")
        got = zero[f"offload_{kind}"]
        assert (got and got["device"]) == wanted


def test_deepspeed_refuses_a_misspelt_field(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"zero_optimization": {"stage": 3, "ofload_optimizer": {"device": "cpu"}}}
    with pytest.raises(ValueError, match="ofload_optimizer"):
        parse(config, monkeypatch, world=2)


@pytest.mark.parametrize("name", deepspeed_configs.names())
def test_it_holds_the_sharding_only(name: str) -> None:
    """Batch sizes, precision, clipping and optimizer belong to the recipe; the engine refuses a file that sets them."""
    assert set(json.loads((FOLDER / f"{name}.json").read_text())) == {"zero_optimization"}


@pytest.mark.parametrize(("name", "shape"), LLAMA2.items())
def test_llama2_offloads_only_what_does_not_fit(name: str, shape: tuple[int, int, int]) -> None:
    """ZeRO (arXiv:1910.02054), table 1: 16 bytes of states per parameter; with the optimizer offloaded 2 stay."""
    parameters, _, workers = shape
    zero = deepspeed_configs.load(name)["zero_optimization"]
    fits = 16 * parameters / workers < 0.75 * A10G_BYTES  # the rest is for activations, buffers and fragmentation
    assert ("offload_optimizer" in zero) == (not fits)
    assert "offload_param" not in zero
    on_gpu = (16 if fits else 2) * parameters / workers
    assert on_gpu < 0.75 * A10G_BYTES


@pytest.mark.parametrize(("name", "shape"), LLAMA2.items())
def test_llama2_buckets_follow_the_hidden_size(name: str, shape: tuple[int, int, int]) -> None:
    """The rule that Transformers applies to "auto": one square projection per bucket, the norms stay whole."""
    zero, hidden = deepspeed_configs.load(name)["zero_optimization"], shape[1]
    assert zero["reduce_bucket_size"] == hidden**2
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * hidden**2)
    assert zero["stage3_param_persistence_threshold"] == 10 * hidden
