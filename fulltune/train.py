"""The training loop: a generator of records.

    for event in fit(...): the caller logs, saves, validates

It knows nothing of Ray, ranks, or disks. What would change the flow (a stop, a loss that is not finite) is agreed
by all workers before it is yielded, so no worker ever waits in a collective that another has left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fulltune.batches import MicroBatch, Step
from fulltune.config import TrainConfig
from fulltune.device import Stopwatch
from fulltune.guards import SpikeWatch


class TrainingEngine(Protocol):
    """What the loop asks of an engine (`fulltune.engine.Engine`; tests bring their own)."""

    device: torch.device
    scales_loss: bool

    def accumulate(self, batch: MicroBatch, *, step_tokens: int, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch; its summed loss."""

    def update(self, learning_rate: float) -> float:
        """One optimizer step; the gradient norm. Where that or a loss is not finite, drops the gradients instead."""

    def evaluate(self, batch: MicroBatch) -> torch.Tensor:
        """The summed loss of a micro-batch, without gradients."""


class Reduction(Protocol):
    """Sums over workers (`fulltune.comm.Workers`)."""

    def sum(self, values: Sequence[float], target: torch.device | None = None) -> list[float]:
        """Element-wise sum over workers."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """An optimizer step was taken. `loss` is the mean over the step's supervised tokens, before the update.

    `grad_norm` is None where float16's loss scaler found an overflow and left the weights as they were.
    `padded_tokens` are computed for nothing, `squared_lengths` is the sum of the examples' squared lengths (attention).
    Seconds are this worker's, taken when its device was idle: reading, forward and backward passes, optimizer.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float | None
    tokens: int
    supervised_tokens: int
    padded_tokens: int
    squared_lengths: int
    data_seconds: float
    compute_seconds: float
    update_seconds: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A step whose loss or gradient norm is not finite: gradients were dropped, weights and optimizer are as before."""

    step: int
    what: str
    value: float
    example_indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class Spiked:
    """The loss of `step` stands far above `usual`, the median of the steps before."""

    step: int
    loss: float
    usual: float


@dataclass(frozen=True, slots=True)
class Validated:
    """The loss over the supervised tokens of the validation split, after `step`."""

    step: int
    loss: float
    supervised_tokens: int


@dataclass(frozen=True, slots=True)
class SaveDue:
    """The caller saves the state as it is after `step`; `last` where no step follows in this attempt."""

    step: int
    last: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """Training ended early after `step`, on request or at a spike (the state was offered for saving before)."""

    step: int


Event = StepDone | Skipped | Spiked | Validated | SaveDue | Stopped


class NonFinite(RuntimeError):
    """Loss or gradient is NaN or infinite. Weights are as before the step; `example_indices` names its examples."""

    def __init__(self, what: str, value: float, step: int, example_indices: Sequence[int]) -> None:
        super().__init__(
            f"{what} {value} at step {step} (weights unchanged); examples of the step by row of the prepared data: "
            f"{list(example_indices)}; lower train.learning_rate or inspect these rows"
        )
        self.what, self.value = what, value
        self.step, self.example_indices = step, list(example_indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When things are due. Steps count from 1; None means never, the last step is always saved."""

    total_steps: int
    save_every: int | None
    validate_every: int | None
    save_when_validating: bool = False  # where a checkpoint is what is validated

    def saves(self, step: int) -> bool:
        """Whether the state is saved after this step."""
        due = self.save_every is not None and step % self.save_every == 0
        return due or step == self.total_steps or (self.save_when_validating and self.validates(step))

    def validates(self, step: int) -> bool:
        """Whether the validation loss is taken after this step."""
        if self.validate_every is None:
            return False
        return step == self.total_steps or step % self.validate_every == 0


def fit(
    engine: TrainingEngine,
    plan: Callable[[int], Step],
    load: Callable[[Sequence[int]], MicroBatch],
    train: TrainConfig,
    schedule: Schedule,
    *,
    workers: Reduction,
    validate: Callable[[], tuple[float, int]] | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    first_step: int = 1,
    skipped: int = 0,
    watch: SpikeWatch | None = None,
) -> Iterator[Event]:
    """Trains from `first_step` to the schedule's last step and yields what happened.

    Args:
        plan: step number -> this worker's share of the step.
        load: indices -> tensors.
        validate: () -> mean loss and number of supervised tokens of the validation split.
        skipped: steps that the run left out before `first_step`; they count against `train.max_skips`.
        watch: knows the losses before `first_step`; default: one that knows none.

    Raises:
        NonFinite: a loss or gradient norm is not, and `train` says to stop or has no skip left.
    """
    skips_left = train.max_skips - skipped if train.on_nonfinite == "skip" else 0
    watch = watch or SpikeWatch(train.spike_window, train.spike_threshold)
    for number in range(first_step, schedule.total_steps + 1):
        clock = Stopwatch(engine.device)
        step = plan(number)
        batches = [load(indices) for indices in step.micro_batches]
        data_seconds = clock.lap()
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            loss_sum += engine.accumulate(batch, step_tokens=step.supervised_tokens, last=last).double()
        total, stops = workers.sum([float(loss_sum), float(stop_requested())], engine.device)
        compute_seconds = clock.lap()
        loss = total / step.supervised_tokens
        lr = learning_rate(train, number, schedule.total_steps)
        norm = engine.update(lr)
        fault = _fault(loss, norm, scales_loss=engine.scales_loss)
        if fault is None:
            yield _done(step, loss, lr, norm, (data_seconds, compute_seconds, clock.lap()))
        elif skips_left > 0:
            skips_left -= 1
            yield Skipped(number, *fault, step.example_indices)
        else:
            raise NonFinite(*fault, number, step.example_indices)
        if fault is None and (usual := watch.usual(loss)) is not None:
            stops = stops or train.on_loss_spike == "stop"
            yield Spiked(number, loss, usual)
        if validate is not None and schedule.validates(number):
            valid_loss, valid_tokens = validate()
            yield Validated(number, valid_loss, valid_tokens)
        if stops or schedule.saves(number):
            yield SaveDue(number, last=bool(stops) or number == schedule.total_steps)
        if stops and number < schedule.total_steps:
            yield Stopped(number)
            return


def _fault(loss: float, norm: float, *, scales_loss: bool) -> tuple[str, float] | None:
    """What is not finite, and its value. A float16 loss scaler overflows now and then by design: that is no fault."""
    if not math.isfinite(loss):
        return "loss", loss
    if not math.isfinite(norm) and not scales_loss:
        return "gradient norm", norm
    return None


def _done(step: Step, loss: float, lr: float, norm: float, seconds: tuple[float, float, float]) -> StepDone:
    data_seconds, compute_seconds, update_seconds = seconds
    return StepDone(
        step=step.number,
        epoch=step.epoch,
        loss=loss,
        lr=lr,
        grad_norm=norm if math.isfinite(norm) else None,
        tokens=step.tokens,
        supervised_tokens=step.supervised_tokens,
        padded_tokens=step.padded_tokens,
        squared_lengths=step.squared_lengths,
        data_seconds=data_seconds,
        compute_seconds=compute_seconds,
        update_seconds=update_seconds,
    )


def learning_rate(train: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of step `step` (from 1): linear warm-up to the peak, then the scheduler's shape down to the floor.

    The first step after the warm-up takes the peak; the last step takes what is left one step before the end, so no
    step is wasted on a rate of zero.
    """
    if step <= train.warmup_steps:
        return train.learning_rate * step / (train.warmup_steps + 1)
    shape = _shape(train, step - 1 - train.warmup_steps, max(1, total_steps - train.warmup_steps))
    return train.learning_rate * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * shape)


def _shape(train: TrainConfig, past: int, steps: int) -> float:
    """What is left of the peak, 1 to 0, `past` steps after it, of `steps` after the warm-up; as in transformers."""
    match train.lr_scheduler:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - past / steps
        case "cosine":
            return _half_cosine(past / steps)
        case "inverse_sqrt":
            scale = train.warmup_steps or 10_000
            return 1.0 / math.sqrt(1.0 + past / scale)
        case "wsd":  # warm-up, stable, decay (arXiv 2404.06395)
            decay = min(train.decay_steps or math.ceil(steps / 10), steps)
            return _half_cosine(max(0, past - (steps - decay)) / decay)


def _half_cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


def mean_loss(
    engine: TrainingEngine, shares: Sequence[MicroBatch], supervised_tokens: int, workers: Reduction
) -> tuple[float, int]:
    """The mean loss over supervised tokens of data that is spread over the workers, the same for any number of them.

    Args:
        shares: this worker's micro-batches; as many on every worker.
        supervised_tokens: over all workers.
    """
    total = sum(float(engine.evaluate(batch)) for batch in shares)
    return workers.sum([total], engine.device)[0] / supervised_tokens, supervised_tokens
