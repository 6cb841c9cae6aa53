"""Silent bugs, put back in: each function is a context in which the engine has one that somebody shipped once.

The sources are issues of the libraries below us; every bug trained on without an error and was found by its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import deepspeed
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from transformers import AutoConfig, AutoModelForCausalLM

from fulltune import attention, batches
from fulltune import train as training
from fulltune.engine import core


@contextmanager
def offload_drops_accumulated_gradients() -> Iterator[None]:
    """DeepSpeed #7967, #7981: under ZeRO-1/2 with offload only the last micro-batch's gradient is used."""
    accumulate = DeepSpeedZeroOptimizer.async_accumulate_grad_in_cpu_via_gpu

    def without_adding(self: Any, parameter: Any) -> None:
        number, self.micro_step_id = self.micro_step_id, 0
        accumulate(self, parameter)
        self.micro_step_id = number

    with mock.patch.object(DeepSpeedZeroOptimizer, "async_accumulate_grad_in_cpu_via_gpu", without_adding):
        yield


@contextmanager
def manual_accumulation_discards_gradients() -> Iterator[None]:
    """open-instruct #1498: gradients of all micro-batches but the last are lost."""
    accumulate = core.Engine.accumulate

    def only_the_last(self: Any, batch: Any, *, step_tokens: int, last: bool) -> Any:
        return accumulate(self, batch, step_tokens=step_tokens if last else 2**60, last=last)

    with mock.patch.object(core.Engine, "accumulate", only_the_last):
        yield


@contextmanager
def gradients_leak_into_the_next_step() -> Iterator[None]:
    """DeepSpeed #7985: what a step has used is not cleared."""
    with mock.patch.object(deepspeed.DeepSpeedEngine, "zero_grad"):
        yield


@contextmanager
def mean_of_means_over_micro_batches() -> Iterator[None]:
    """transformers #34191: every micro-batch weighs the same, however many supervised tokens it has."""
    accumulate = core.Engine.accumulate

    def by_micro_batch(self: Any, batch: Any, *, step_tokens: int, last: bool) -> Any:
        return accumulate(self, batch, step_tokens=len(batch.targets) * 4 * self._world, last=last)

    with mock.patch.object(core.Engine, "accumulate", by_micro_batch):
        yield


@contextmanager
def mean_of_means_over_workers() -> Iterator[None]:
    """Data parallelism averages gradients: a worker that divides by its own tokens makes all workers weigh the same."""
    original = batches.StepPlanner.step

    def own_tokens(self: Any, number: int) -> Any:
        step = original(self, number)
        mine = sum(int(self.table.supervised[micro].sum()) for micro in step.micro_batches)
        object.__setattr__(step, "supervised_tokens", mine * self.num_workers)
        return step

    with mock.patch.object(batches.StepPlanner, "step", own_tokens):
        yield


@contextmanager
def schedule_steps_per_micro_batch() -> Iterator[None]:
    """The learning-rate schedule runs four times too fast."""
    original = training.learning_rate
    with mock.patch.object(training, "learning_rate", lambda t, step, total: original(t, min(total, 4 * step), total)):
        yield


@contextmanager
def learning_rate_multipliers_are_lost() -> Iterator[None]:
    """Every group gets the same rate (a DeepSpeed load copies the first group's settings into all)."""
    update = core.Engine.update

    def same_rate(self: Any, rate: float) -> float:
        for group in self._wrapped.optimizer.param_groups:
            group["lr_scale"] = 1.0
        return update(self, rate)

    with mock.patch.object(core.Engine, "update", same_rate):
        yield


@contextmanager
def weight_decay_falls_on_every_parameter() -> Iterator[None]:
    """Norms decay too."""
    with mock.patch.object(core, "_rank", return_value=2):
        yield


@contextmanager
def dummies_are_trained_on() -> Iterator[None]:
    """The padding of a step, an example that only keeps a worker in the collectives, counts."""
    original = batches.collate_examples
    with mock.patch.object(batches, "collate_examples", lambda examples, weight: original(examples, weight=1.0)):
        yield


@contextmanager
def new_rows_are_frozen() -> Iterator[None]:
    """The embedding's gradient is masked below the old vocabulary's end."""
    load = core.load_model

    def masked(*args: Any) -> Any:
        model = load(*args)
        weight = model.get_input_embeddings().weight
        weight.register_hook(lambda grad: grad.index_fill(0, torch.arange(len(grad) - 80, len(grad)), 0.0))
        return model

    with mock.patch.object(core, "load_model", masked):
        yield


@contextmanager
def weights_are_not_loaded() -> Iterator[None]:
    """transformers #43847: under ZeRO-3 the model trains from a start that nobody chose."""

    def fresh(run: Any, folder: Any) -> Any:
        attention.register()
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), attn_implementation=attention.SEGMENTS
        )

    with mock.patch.object(core, "load_model", fresh):
        yield


@contextmanager
def clipping_is_left_out() -> Iterator[None]:
    """Gradients are used as they are."""
    with mock.patch.object(core.Engine, "_clip_unsharded", return_value=1.0):
        yield
