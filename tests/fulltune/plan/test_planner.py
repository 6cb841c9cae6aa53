"""A plan's answers: what fits, what is fastest, the smallest cluster, what the study's configuration wastes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import deepspeed_configs
from fulltune import architectures, config
from fulltune.engine import settings
from fulltune.plan import hardware, memory, planner, report, search, shape, sharding, time, workload
from fulltune.plan.hardware import GPUS, PRICES
from fulltune.plan.planner import Options
from fulltune.plan.refusals import refusals
from tasks.base import UserError

VIGGO = workload.assumed(5103, 76.8, 30.0, 0.518, "a test")


def recipe(size: str = "7b", workers: int = 16, **changes):
    """A Llama-2 run on A10G; keys with two underscores are nested."""
    tree = {
        "task": "viggo",
        "model": {"name_or_path": f"llama2_{size}", "dtype": "bfloat16"},
        "train": {"global_batch_size": 256, "micro_batch_tokens": 4096, "gradient_checkpointing": True},
        "deepspeed": "zero3",
        "ray": {"num_workers": workers, "use_gpu": True, "accelerator_type": "A10G", "name": "test"},
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            tree[section][leaf] = value
        else:
            tree[section] = value
    return config.resolve(tree, origin="test")


def plan(size: str = "7b", workers: int = 16, options: Options | None = None, **changes):
    made = recipe(size, workers, **changes)
    return planner.plan(made, architectures.load(f"llama2_{size}"), VIGGO, options or Options())


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_study_offloads_although_the_states_fit(size):
    study = plan(size, deepspeed=f"llama2_{size}").study
    assert study is not None
    assert study.fits_without_offload
    assert study.step_seconds > study.step_seconds_without
    assert study.padding == pytest.approx(512 / 76.8, rel=0.02)


def test_70b_needs_offload_on_32_a10g():
    assert not plan("70b", 32, deepspeed="zero3").fits
    assert plan("70b", 32, deepspeed="llama2_70b").fits


@pytest.mark.parametrize("gpu", [row.name for row in GPUS])
@pytest.mark.parametrize("size", ["7b", "70b"])
def test_what_is_called_fastest_fits(size, gpu):
    found = plan(size, 16, Options(gpu=gpu))
    if found.best is None:
        assert found.problems
        return
    best = found.best
    again = plan(
        size,
        16,
        Options(gpu=gpu),
        deepspeed=best.deepspeed,
        train__micro_batch_tokens=best.micro_batch_tokens,
        train__gradient_checkpointing=best.gradient_checkpointing,
    )
    assert again.fits
    assert again.memory.gpu.total == best.gpu_bytes
    assert best.step_seconds * found.work.steps / 3600 <= found.hours * search.AS_FAST or not found.fits


@pytest.mark.parametrize(
    ("size", "workers", "gpu", "chosen"),
    [
        ("7b", 16, "A10G", "zero3_hpz_7b"),  # two nodes, and 100 Gbit/s between them for eight GPUs each
        ("7b", 8, "A100-80", "zero1_7b"),
        ("13b", 16, "A10G", "zero3_hpz_13b"),
        ("70b", 32, "A10G", "zero3_offload_70b"),
        ("7b", 2, "A10G", "zero3_offload_7b"),
    ],
)
def test_auto_is_the_fastest_file_that_fits(size, workers, gpu, chosen):
    found = plan(size, workers, Options(gpu=gpu), deepspeed="auto")
    assert found.config.deepspeed == chosen
    assert found.fits
    for name in deepspeed_configs.names():
        other = plan(size, workers, Options(gpu=gpu), deepspeed=name)
        if other.fits and ("hpz" not in name or workers % 8 == 0 and workers > 8):  # hpZ: whole nodes, and several
            assert found.hours <= other.hours * search.AS_FAST**2, name


def test_auto_where_nothing_fits_names_what_needs_least():
    found = plan("70b", 2, deepspeed="auto")
    assert found.config.deepspeed == "zero3_offload_all_70b"
    assert not found.fits


def test_auto_on_cpus_and_a_named_file_stays():
    on_cpu = {"ray__use_gpu": False, "ray__accelerator_type": None, "model__dtype": "auto"}
    assert plan("7b", 2, deepspeed="auto", **on_cpu).config.deepspeed == "zero2"
    for dtype, name in {"auto": "zero0", "float32": "zero0", "bfloat16": "zero1"}.items():
        found = plan("7b", 1, deepspeed="auto", **(on_cpu | {"model__dtype": dtype})).config
        assert found.deepspeed == name
        settings.complete(found, num_workers=1)  # which the engine does
    assert plan("7b", 2, deepspeed="zero1").config.deepspeed == "zero1"


def test_a_second_copy_of_the_weights_pays_where_the_network_decides():
    """ZeRO++ hpZ: only the first gather of a step crosses the nodes; it needs whole nodes, and more than one."""
    slow = replace(hardware.gpu("A100-80"), network_bandwidth=1e9 / 8)
    made = plan("7b", 16, Options(gpu="A100-80"), train__micro_batch_tokens=512, train__global_batch_size=1024)
    plain, copied = (
        replace(made.setup, sharding=sharding.read(deepspeed_configs.load(name))) for name in ("zero3", "zero3_hpz")
    )
    assert time.step_seconds(copied, made.work, slow) < 0.85 * time.step_seconds(plain, made.work, slow)
    assert memory.memory(copied).gpu.total > memory.memory(plain).gpu.total
    fitting = {choice.deepspeed for choice in search._shardings(made.setup, made.work, slow, slow.node_memory, 512)}
    assert "zero3_hpz_7b" in fitting
    one_node = replace(made.setup, workers=8)
    fitting = {choice.deepspeed for choice in search._shardings(one_node, made.work, slow, slow.node_memory, 512)}
    assert "zero3_hpz_7b" not in fitting


@pytest.mark.parametrize(("workers", "copied"), [(16, True), ([16, 16], True), ([16, 24], False), ([16, 17], False)])
def test_workers_that_may_change_have_no_second_copy(workers, copied):
    """DeepSpeed's groups want the world size to be a multiple of the partition, at every size of the range."""
    found = plan("7b", workers, deepspeed="auto")
    assert found.fits
    assert ("hpz" in found.config.deepspeed) == copied
    assert ("hpz" in found.best.deepspeed) == copied


def test_zero_0_in_bfloat16_is_a_problem_as_the_engine_refuses_it():
    roomy = Options(gpu="H200")
    found = plan("7b", 16, roomy, deepspeed="zero0")
    assert found.memory.gpu.total <= found.gpu.memory
    with pytest.raises(UserError):
        settings.complete(found.config, num_workers=16)
    (problem,) = found.problems
    assert problem.startswith("ZeRO-0 with model.dtype bfloat16")
    assert "deepspeed=zero1" in problem
    assert not next(one for one in report.as_json(found)["same_on"] if one["gpu"] == "H200")["fits"]
    for dtype in ("float32", "float16"):
        assert not any(
            "ZeRO-0" in problem for problem in plan("7b", 16, deepspeed="zero0", model__dtype=dtype).problems
        )


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (1, None),
        (5, None),  # fewer than the partition are one group
        (8, None),
        (16, None),
        ([16, 16], None),
        ([2, 8], None),
        (
            12,
            "with 12 workers, where DeepSpeed wants at most 8 or a multiple of it: set ray.num_workers=8, or deep",
        ),
        ([8, 16], "ray.num_workers [8, 16], of which 9 may come"),
        ([4, 9], "of which 9 may come"),
        ([16, 17], "of which 17 may come"),
    ],
)
def test_hpz_is_a_problem_with_workers_that_its_groups_do_not_divide(workers, said):
    """The rule of DeepSpeed's utils/groups.py: groups of min(partition, workers), and no worker left over."""
    found = plan("7b", workers, Options(gpu="H200"), deepspeed="zero3_hpz_7b")
    assert found.fits == (said is None)
    if said is not None:
        (problem,) = found.problems
        assert said in problem
        assert problem.endswith("deepspeed=zero3_7b")


@pytest.mark.parametrize("partition", [2, 3, 8])
def test_the_rule_of_hpz_is_deepspeeds_own(partition):
    from deepspeed.utils import groups

    own = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": partition}}
    made = replace(plan("7b", 1).setup, sharding=sharding.read(own))
    for workers in range(1, 33):
        try:
            groups._ensure_divisibility(workers, min(partition, workers))
            runs = True
        except AssertionError:
            runs = False
        assert bool(refusals(recipe("7b", workers, deepspeed=own), made)) != runs, workers


def test_hpz_of_a_file_that_is_not_shipped_is_left_out_of_it():
    own = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}
    (problem,) = plan("7b", 8, Options(gpu="H200"), deepspeed=own).problems
    assert problem.endswith("set ray.num_workers=6, or leave it out of the file")


def test_the_smallest_cluster_is_minimal():
    found = plan("13b")
    assert found.smallest is not None
    fewer = plan("13b", found.smallest.workers // 2)
    assert fewer.best is None or "offload" in fewer.best.deepspeed


def test_parts_add_up_and_the_problem_names_both_sizes():
    found = plan("7b", 1)
    gpu = found.memory.gpu
    parts = (gpu.parameters, gpu.gradients, gpu.optimizer, gpu.activations, gpu.logits, gpu.buffers)
    assert gpu.total == sum(parts)
    assert min(parts) >= 0
    assert not found.fits
    assert f"needs {planner.gb(gpu.total)} per GPU" in found.problems[0]


def test_memory_grows_with_the_micro_batch_and_shrinks_with_checkpointing():
    made = plan("7b").setup
    larger = replace(made, batch=replace(made.batch, tokens=2 * made.batch.tokens))
    without = replace(made, checkpointing=False)
    total = memory.memory(made).gpu.total
    assert memory.memory(larger).gpu.total > total
    assert memory.memory(without).gpu.total > total


def test_a_cpu_run_is_planned_without_gpu_tables():
    found = plan("7b", 2, ray__use_gpu=False, ray__accelerator_type=None, model__dtype="auto")
    assert (found.gpu, found.best, found.study, found.cost_usd) == (None, None, None, None)
    assert found.memory.host > 2 * found.memory.gpu.total
    assert found.setup.dtype_bytes == 4


def test_price_and_host_memory_replace_the_tables():
    cheap = plan("7b", options=Options(usd_per_hour=1.0, host_memory=2**30))
    assert cheap.cost_usd == pytest.approx(16 * cheap.hours)
    assert any("host memory per node" in problem for problem in cheap.problems)
    assert plan("7b", options=Options(gpu="RTX-4090")).cost_usd is None


def test_float32_on_a_gpu_is_planned_at_the_peak_without_tensor_cores():
    half, full = (plan("7b", 8, Options(gpu="A100-80"), model__dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert full.hours > 10 * half.hours
    assert full.cost_usd > 10 * half.cost_usd
    assert plan("7b", 8, Options(gpu="A100-80"), model__dtype="float16").hours == pytest.approx(half.hours)
    assert any("19.5 TFLOP/s, the peak in float32 (NVIDIA data sheet)" in line for line in full.assumptions)
    assert any("312 TFLOP/s, the peak of the 16-bit types" in line for line in half.assumptions)


def test_a_gpu_without_a_tenth_to_spare_is_said_to_be_full():
    """ZeRO-2 holds 7B on 16 A10G with 1 % to spare, ZeRO-3 with half, and 13B under ZeRO-2 not at all."""

    def full(name, file):
        return [line for line in plan(name, deepspeed=file).assumptions if "of the GPU is taken" in line]

    (line,) = full("7b", "zero2")
    assert line.startswith("memory: 99% of the GPU")
    assert not full("7b", "zero3")
    assert not full("13b", "zero2"), "it does not fit, which is said elsewhere"


def test_steps_and_tokens_follow_the_recipe():
    found = plan("7b", train__num_epochs=10)
    assert found.work.steps == 10 * 20
    assert found.work.tokens == pytest.approx(10 * VIGGO.tokens.sum())
    assert plan("7b", train__max_steps=7).work.steps == 7


def test_the_largest_micro_batch_bounds_what_packing_makes():
    import numpy as np

    from fulltune.packing import pack

    lengths = np.random.default_rng(0).integers(10, 300, 2000)
    made = recipe(train__micro_batch_tokens=1000, train__global_batch_size=64, ray__num_workers=2)
    work = workload.workload(made, workload.Lengths(lengths, lengths // 2, "test", known=True))
    for start in range(0, 1984, 64):
        shares = pack(lengths, np.arange(start, start + 64), 1000, 2)
        assert max(sum(lengths[i] for i in bin) for share in shares for bin in share) <= work.largest.tokens


def test_gpu_names_are_forgiving_and_mistakes_are_named():
    assert hardware.gpu("a10g").name == hardware.gpu("A10").name == "A10G"
    assert hardware.gpu("A100-80G").name == "A100-80"
    with pytest.raises(UserError, match="did you mean 'H100'"):
        hardware.gpu("H10O")


def test_a_gpu_run_without_a_type_asks_for_one():
    with pytest.raises(UserError, match="--gpu NAME"):
        plan("7b", ray__accelerator_type=None)


def test_tables_carry_their_sources():
    assert all(row.source and row.memory < 150 * 2**30 for row in GPUS)
    assert all(row.source and len(row.date) == 7 and hardware.gpu(row.gpu).name == row.gpu for row in PRICES)


def test_prices_are_of_the_instance_whose_nodes_are_planned():
    for row in PRICES:
        instance = hardware.gpu(row.gpu).source.rpartition("; ")[2]
        assert f"AWS {instance};" in row.source
    assert hardware.price("A10G").usd_per_hour == pytest.approx(16.288 / 8)


def test_hpz_needs_several_gpus_per_node():
    slow = {"train__micro_batch_tokens": 512, "train__global_batch_size": 1024, "deepspeed": "auto"}
    network = 1e9 / 8
    assert "hpz" in plan("7b", options=Options(node_network=network), **slow).config.deepspeed
    single = plan("7b", options=Options(node_network=network, gpus_per_node=1, host_memory=2**36), **slow)
    assert "hpz" not in single.config.deepspeed
    assert "hpz" not in single.best.deepspeed
    assert single.setup.workers_per_node == 1


def test_nodes_with_fewer_gpus_have_as_much_less_of_the_usual_network_and_host():
    """The usual A10G instance has eight GPUs, 768 GiB and 100 Gbit/s."""
    usual, single = plan("7b"), plan("7b", options=Options(gpus_per_node=1))
    assert (single.gpu.network_bandwidth, single.host_memory) == (12.5e9 / 8, 96 * 2**30)
    assert single.hours > 3 * usual.hours
    assert any(line.endswith("the usual instance's with 8 GPU(s), times 1/8") for line in single.assumptions)
    assert any(line.endswith("where not given, the usual instance's") for line in usual.assumptions)
    given = plan("7b", options=Options(gpus_per_node=1, node_network=5e9, host_memory=2**36)).gpu
    assert (given.node_size, given.network_bandwidth, given.node_memory) == (1, 5e9, 2**36)
    same = plan("7b", options=Options(gpus_per_node=8)).gpu
    assert same == usual.gpu == hardware.gpu("A10G")


def test_a_host_that_could_train_but_not_save_is_refused():
    """70B, offloaded on 16 A10G: 18 bytes per parameter rest on two hosts, and a save copies 12 more."""
    found = plan("70b", 16, deepspeed="zero3_offload_70b")
    left = memory.usable(found.host_memory)
    assert max(found.memory.host, found.memory.host_loading) < left < found.memory.host_saving
    assert [problem.split(" needs")[0] for problem in found.problems] == ["saving, which copies the states first,"]
    assert found.best is None
    assert found.smallest_with_offload.host_bytes <= left


def test_ray_leaves_95_percent_of_a_host():
    need = plan("7b", deepspeed="zero3_offload_7b").memory.host_peak
    assert not plan("7b", deepspeed="zero3_offload_7b", options=Options(host_memory=int(need / 0.96))).fits
    assert plan("7b", deepspeed="zero3_offload_7b", options=Options(host_memory=int(need / 0.94))).fits


def test_logits_are_counted_as_the_engine_forms_them():
    chunked, at_once = plan("7b"), plan("7b", train__loss_chunk_tokens=0)
    assert (chunked.setup.loss_chunk, at_once.setup.loss_chunk) == (1024, 0)
    assert plan("7b", model__dtype="float16").setup.loss_chunk == 0
    wordy = architectures.load("llama2_7b") | {"vocab_size": 128_256}
    batch = {"train__micro_batch_tokens": 16384, "train__global_batch_size": 4096}
    needed = [
        planner.plan(recipe(**batch, train__loss_chunk_tokens=chunk), wordy, VIGGO, Options()).memory.gpu
        for chunk in (1024, 0)
    ]
    assert needed[0].logits < 0.3 * needed[1].logits
    assert needed[0].total < needed[1].total


def with_auto(made):
    return made.model_copy(update={"deepspeed": "auto"})


@pytest.mark.parametrize(("size", "workers", "gpu"), [("7b", 16, "A10G"), ("7b", 8, "H100"), ("13b", 16, "A10G")])
def test_an_open_micro_batch_is_as_fast_as_the_fastest_that_fits(size, workers, gpu):
    """Against every budget planned by itself, as a user would have to."""
    same = {"ray__accelerator_type": gpu, "train__global_batch_size": 1024}
    chosen = plan(size, workers, train__micro_batch_tokens="auto", **same)
    budget = chosen.config.train.micro_batch_tokens
    assert chosen.fits
    each = {tokens: plan(size, workers, train__micro_batch_tokens=tokens, **same) for tokens in search.MICRO_BATCHES}
    fitting = {tokens: found for tokens, found in each.items() if found.fits}
    assert 1 < len(fitting) <= len(each)
    assert each[budget].memory == chosen.memory
    assert chosen.hours <= search.AS_FAST * min(found.hours for found in fitting.values())
    assert chosen.work.examples * chosen.work.steps == each[budget].work.examples * each[budget].work.steps
    assert chosen.work.steps == each[512].work.steps, "the global batch is fixed"


def test_an_open_micro_batch_of_what_cannot_fit_is_the_smallest():
    found = plan("70b", 8, train__micro_batch_tokens="auto", deepspeed="zero3")
    assert not found.fits
    assert found.config.train.micro_batch_tokens == 512


def test_file_and_micro_batch_may_both_be_open():
    found = plan("7b", 16, train__micro_batch_tokens="auto", deepspeed="auto")
    assert found.fits
    assert found.config.deepspeed in deepspeed_configs.names()
    alone = plan("7b", 16, deepspeed="auto", train__micro_batch_tokens=found.config.train.micro_batch_tokens)
    assert (alone.config.deepspeed, alone.hours) == (found.config.deepspeed, found.hours)


def test_an_open_micro_batch_on_cpus_is_the_fewest_passes_whose_tensors_fit():
    cpus = {"ray__use_gpu": False, "ray__accelerator_type": None, "train__micro_batch_tokens": "auto"}
    roomy = plan("7b", 2, options=Options(host_memory=2**40), **cpus)
    assert (roomy.work.micro_batches, roomy.fits) == (1, True)
    tight = plan("7b", 2, options=Options(host_memory=int(1.02 * roomy.memory.host_peak / 0.95)), **cpus)
    assert tight.config.train.micro_batch_tokens == roomy.config.train.micro_batch_tokens
    half = plan("7b", 2, options=Options(host_memory=int(0.9 * roomy.memory.host_peak / 0.95)), **cpus)
    assert half.config.train.micro_batch_tokens < roomy.config.train.micro_batch_tokens


def test_the_page_on_deepspeed_has_what_auto_takes():
    """docs/deepspeed.md, row by row; one plan per cell would search for much more than the file."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "deepspeed.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| model | "))
    clusters = [cell.strip().split(" x ") for cell in header.split("|")[2:-1]]
    for size in ("7b", "13b", "70b"):
        row = next(line for line in page.splitlines() if line.startswith(f"| {size.upper()} |"))
        model = shape.of(architectures.load(f"llama2_{size}"))
        for (workers, name), cell in zip(clusters, row.split("|")[2:-1], strict=True):
            gpu, made = hardware.gpu(name), recipe(size, int(workers))
            trial = planner.setup(made, model, workload.workload(made, VIGGO), gpu)
            best = search.fastest_left_open(with_auto(made), trial, VIGGO, gpu, gpu.node_memory)
            assert cell.strip() == (f"`{best.deepspeed}`" if best else "none fits"), (size, workers, name)


METRIC = {"validation": {"metric": "exact_match", "every_steps": 10}}


@pytest.mark.parametrize(
    ("changes", "kept", "bytes_per_parameter"),
    [
        ({}, 4, 0),
        ({"checkpoint": {"keep_best": False}}, 3, 0),
        (METRIC, 6, 2),
        (METRIC | {"checkpoint": {"keep_best": False}}, 6, 2),  # the metric's best stays, as the watch has it
        (METRIC | {"checkpoint": {"keep_last": 1}, "model__dtype": "auto"}, 5, 4),  # it exports for a CPU
    ],
)
def test_disk_holds_what_a_validation_by_metric_keeps(changes, kept, bytes_per_parameter):
    found = plan("7b", **changes)
    assert found.checkpoints_kept == kept
    assert found.validation_export == bytes_per_parameter * found.setup.shape.parameters
    whole = 2 * found.setup.shape.parameters
    assert found.disk == found.starting_model + kept * found.checkpoint + whole + found.validation_export
    assert ("more while one is validated" in report.text(found)) == bool(bytes_per_parameter)
    assert report.as_json(found)["disk_bytes"] == found.disk
