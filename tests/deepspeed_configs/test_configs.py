"""Every shipped DeepSpeed file passes DeepSpeed's own parser, in every precision, at its number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deepspeed_configs

FOLDER = Path(deepspeed_configs.__file__).parent
WORKERS = (1, 2, 3, 4, 8, 16, 32, 48, 64)
FAMILY = [
    (scheme, size) for scheme in deepspeed_configs.SCHEMES for size in ("", *deepspeed_configs.SIZES)
    if not size or scheme != "zero0"
]  # fmt: skip
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
    assert {file(*member) for member in FAMILY} | set(LLAMA2) == set(deepspeed_configs.names())


def test_load_gives_a_fresh_copy() -> None:
    deepspeed_configs.load("zero2")["zero_optimization"]["stage"] = 9
    assert deepspeed_configs.load("zero2")["zero_optimization"]["stage"] == 2


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(LookupError, match=r"'zero3_ofload'.*did you mean 'zero3_offload'\?"):
        deepspeed_configs.load("zero3_ofload")


def file(scheme: str, size: str) -> str:
    """The name of a member of the family."""
    return f"{scheme}_{size}" if size else scheme


def stage_of(name: str) -> int:
    """The ZeRO stage that a name promises."""
    return 3 if name in LLAMA2 else int(name[4])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", deepspeed_configs.names())
def test_deepspeed_accepts_it(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = deepspeed_configs.load(name) | PRECISIONS[precision]
    for world in WORKERS:
        parsed = parse(config, monkeypatch, world=world)
    assert parsed.zero_optimization_stage == stage_of(name)
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
    keys = {"zero_optimization", "aio"} if "nvme" in name else {"zero_optimization"}
    assert set(json.loads((FOLDER / f"{name}.json").read_text())) == keys


@pytest.mark.parametrize("size", deepspeed_configs.SIZES)
@pytest.mark.parametrize("scheme", [scheme for scheme in deepspeed_configs.SCHEMES if scheme != "zero0"])
def test_sizes_differ_in_their_buckets_only(scheme: str, size: str) -> None:
    """One square projection per bucket; the rest is the scheme's."""
    zero, hidden = deepspeed_configs.load(f"{scheme}_{size}"), deepspeed_configs.SIZES[size]
    general, own = deepspeed_configs.load(scheme), zero["zero_optimization"]
    sized = {"reduce_bucket_size": hidden**2}
    if own["stage"] == 3:
        sized["stage3_prefetch_bucket_size"] = int(0.9 * hidden**2)
        sized["stage3_param_persistence_threshold"] = 10 * hidden
    else:
        sized["allgather_bucket_size"] = hidden**2
    general["zero_optimization"] |= sized
    assert zero == general


def test_the_studys_files_are_of_the_family_with_gathered_weights_bounded_for_24_gb() -> None:
    for name, member in {"llama2_7b": "zero3_7b", "llama2_13b": "zero3_13b", "llama2_70b": "zero3_offload_70b"}.items():
        family = deepspeed_configs.load(member)
        bounds = dict.fromkeys(("stage3_max_live_parameters", "stage3_max_reuse_distance"), 500_000_000)
        family["zero_optimization"] |= bounds
        assert deepspeed_configs.load(name) == family


@pytest.mark.parametrize(
    ("scheme", "hidden", "found"),
    [
        ("zero3", 576, "zero3"),
        ("zero3", 4096, "zero3_7b"),
        ("zero2", 5120, "zero2_13b"),
        ("zero3_offload", 7168, "zero3_offload_13b"),
        ("zero3_hpz", 16384, "zero3_hpz_70b"),
        ("zero0", 8192, "zero0"),
    ],
)
def test_a_model_gets_the_file_of_its_size(scheme: str, hidden: int, found: str) -> None:
    assert deepspeed_configs.sized(scheme, hidden) == found
    assert found in deepspeed_configs.names()
    assert deepspeed_configs.scheme(found) == scheme


def test_nvme_is_offload_to_a_folder_and_hpz_keeps_a_copy_per_node_of_eight() -> None:
    nvme = deepspeed_configs.load("zero3_nvme")
    assert nvme["zero_optimization"]["offload_optimizer"]["device"] == "nvme"
    assert nvme["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/local_nvme"
    # buffers of one sub-group: 4 tensors, two of each in flight, float32
    assert 2 * 4 * 4 * nvme["zero_optimization"]["sub_group_size"] < 4 * 2**30
    assert deepspeed_configs.load("zero3_hpz")["zero_optimization"]["zero_hpz_partition_size"] == 8


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
