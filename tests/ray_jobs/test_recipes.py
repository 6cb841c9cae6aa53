"""Every recipe that ships resolves, survives a round trip, and passes DeepSpeed's own configuration parser."""

from __future__ import annotations

from types import SimpleNamespace

import deepspeed.runtime.config as runtime
import pytest

from fulltune import architectures, config
from fulltune.engine import settings
from ray_jobs import recipes
from tasks.base import UserError


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_resolves_and_reads_back(name, tmp_path):
    resolved = config.load(recipes.path(name))
    assert resolved.ray.name == name
    again = tmp_path / "config.yaml"
    again.write_text(config.dump(resolved))
    assert config.load(again) == resolved


@pytest.mark.parametrize("workers", [1, 2, 16, 32, 64])
@pytest.mark.parametrize("name", recipes.names())
def test_deepspeed_accepts_the_completed_configuration(name, workers, monkeypatch):
    resolved = config.load(recipes.path(name))
    complete = settings.complete(resolved, num_workers=workers)
    fake = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda *_: workers)
    monkeypatch.setattr(runtime, "dist", fake)
    parsed = runtime.DeepSpeedConfig(complete)
    assert parsed.train_batch_size == workers
    assert parsed.gradient_clipping == (resolved.train.max_grad_norm if settings.stage(complete) else 0)
    assert parsed.zero_optimization_stage == settings.stage(complete)


@pytest.mark.parametrize(
    ("size", "parameters"), [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)]
)
def test_llama_2_has_its_published_number_of_parameters(size, parameters):
    assert architectures.count_parameters(architectures.load(f"llama2_{size}")) == parameters


@pytest.mark.parametrize("size", ["7b", "13b", "70b"])
def test_llama_2_recipes_follow_the_study(size):
    resolved = config.load(recipes.path(f"viggo_llama2_{size}"))
    train = resolved.train
    assert (train.learning_rate, train.warmup_steps, train.global_batch_size) == (5e-6, 10, 256)
    assert (train.adam_beta1, train.adam_beta2, train.weight_decay) == (0.9, 0.999, 0.0)
    assert resolved.data.max_length == 512
    assert resolved.ray.num_workers == (32 if size == "70b" else 16)
    offloads = settings.offloads_optimizer(settings.base(resolved))
    assert offloads == (size == "70b"), "only 70B needs host memory on this hardware"


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'demo'"):
        recipes.path("dem")
