"""Every recipe that ships resolves, survives a round trip, and passes DeepSpeed's own configuration parser."""

from __future__ import annotations

from types import SimpleNamespace

import deepspeed.runtime.config as runtime
import pytest

import deepspeed_configs
import tasks
from fulltune import architectures, config
from fulltune import tokenizer as tok
from fulltune.engine import settings
from ray_jobs import recipes
from tasks.base import UserError
from tasks.sources import iterate


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_resolves_and_reads_back(name, tmp_path):
    resolved = config.load(recipes.path(name))
    assert resolved.ray.name == name
    again = tmp_path / "config.yaml"
    again.write_text(config.dump(resolved))
    assert config.load(again) == resolved


def parse(complete, workers, monkeypatch):
    """DeepSpeed's own reading, in a world of that many workers."""
    fake = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda *_: workers)
    monkeypatch.setattr(runtime, "dist", fake)
    return runtime.DeepSpeedConfig(complete)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_runs_under_every_file_on_1_to_64_workers(name, monkeypatch):
    """The whole matrix, by DeepSpeed's parser; a launch would need the GPUs."""
    resolved = config.load(recipes.path(name))
    half = resolved.model.dtype == "bfloat16"
    for file in deepspeed_configs.names():
        if file == "zero0" and half:
            continue  # refused: docs/support_matrix.md
        for workers in (1, 2, 3, 4, 8, 16, 24, 32, 48, 64):
            complete = settings.complete(resolved.model_copy(update={"deepspeed": file}), num_workers=workers)
            parsed = parse(complete, workers, monkeypatch)
            assert (parsed.train_batch_size, parsed.world_size) == (workers, workers)
            assert parsed.bfloat16_config.enabled == half


@pytest.mark.parametrize("workers", [1, 2, 16, 32, 64])
@pytest.mark.parametrize("name", recipes.names())
def test_deepspeed_accepts_the_completed_configuration(name, workers, monkeypatch):
    resolved = config.load(recipes.path(name))
    complete = settings.complete(resolved, num_workers=workers)
    parsed = parse(complete, workers, monkeypatch)
    assert parsed.train_batch_size == workers
    assert parsed.gradient_clipping == (resolved.train.max_grad_norm if settings.stage(complete) else 0)
    assert parsed.zero_optimization_stage == settings.stage(complete)


@pytest.mark.parametrize(
    ("size", "parameters"), [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)]
)
def test_llama_2_has_its_published_number_of_parameters(size, parameters):
    assert architectures.count_parameters(architectures.load(f"llama2_{size}")) == parameters


def test_there_is_a_recipe_for_every_task_and_size():
    wanted = {f"{task}_llama2_{size}" for task in ("viggo", "gsm8k", "sql") for size in ("7b", "13b", "70b")}
    small = {f"{task}_{model}" for task in ("viggo", "gsm8k", "sql") for model in ("smollm2_135m", "tiny_cpu")}
    assert set(recipes.names()) == wanted | small | {"demo"}


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "demo"])
def test_recipes_name_a_task_that_the_hub_has(name):
    resolved = config.load(recipes.path(name))
    task = tasks.get(resolved.task, **resolved.task_options)
    assert task.name.startswith(name.partition("_")[0])
    assert resolved.data.source == "hub"
    assert task.hub is not None
    assert {"train", "valid", "test"} <= set(task.hub.splits)


@pytest.mark.parametrize("task", ["viggo", "gsm8k", "sql_create_context"])
def test_max_length_of_the_llama_2_recipes_leaves_no_row_out(task, real_data, monkeypatch):
    monkeypatch.setenv("FULLTUNE_DATA", str(real_data))
    plugin = tasks.get(task)
    tokenizer = tok.load(str(real_data / "llama2_tokenizer"))
    tok.add_task_tokens(tokenizer, plugin)
    resolved = config.load(recipes.path(f"{task.partition('_')[0]}_llama2_7b"))
    for split in ("train", "valid", "test"):
        # the longest text in characters is among the longest in tokens: a twentieth is enough to look at
        rendered = [plugin.render(record) for record in iterate(plugin, split, "hub")]
        rendered.sort(key=lambda segments: -sum(len(segment.text) for segment in segments))
        encoded = tok.encode_examples(tokenizer, plugin, rendered[: len(rendered) // 20], loss_on="completion")
        assert max(len(ids) for ids, _ in encoded) <= resolved.data.max_length


@pytest.mark.parametrize("task", ["viggo", "gsm8k", "sql"])
@pytest.mark.parametrize("size", ["7b", "13b", "70b"])
def test_llama_2_recipes_follow_the_study(task, size):
    resolved = config.load(recipes.path(f"{task}_llama2_{size}"))
    train = resolved.train
    assert (train.learning_rate, train.warmup_steps, train.global_batch_size) == (5e-6, 10, 256)
    assert (train.adam_beta1, train.adam_beta2, train.weight_decay) == (0.9, 0.999, 0.0)
    assert resolved.data.max_length == (640 if task == "gsm8k" else 512)
    assert resolved.ray.num_workers == (32 if size == "70b" else 16)
    offloads = settings.offloads_optimizer(settings.base(resolved))
    assert offloads == (size == "70b"), "only 70B needs host memory on this hardware"


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'demo'"):
        recipes.path("dem")
