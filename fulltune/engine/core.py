"""The training engine: a causal language model inside DeepSpeed, with the few verbs the training loop needs.

    build -> Engine.accumulate (per micro-batch) -> Engine.update (once per optimizer step) -> Engine.save / load

DeepSpeed shards the model states (ZeRO) and averages gradients over workers. Every loss is scaled so that this average
is the mean over all supervised tokens of the step, on all workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from fulltune import attention, device
from fulltune.batches import MicroBatch
from fulltune.config import RunConfig, TrainConfig
from fulltune.engine import cpu_adam, prebuild, universal
from fulltune.engine import settings as ds_settings
from fulltune.engine.snapshot import TAG, Recorder, Snapshot
from fulltune.loss import head_ends_the_model, summed_loss
from tasks.base import UserError


class Engine:
    """One worker's handle on the sharded model, optimizer and gradients."""

    def __init__(
        self, wrapped: Any, *, max_grad_norm: float, loss_chunk_tokens: int, world: int, keep_alive: object
    ) -> None:
        self._wrapped = wrapped
        self._loss_chunk_tokens = loss_chunk_tokens
        self._head = wrapped.module.get_output_embeddings() if loss_chunk_tokens else None
        self._max_grad_norm = max_grad_norm
        self._world = world
        self._keep_alive = keep_alive  # HfDeepSpeedConfig is held by a weak reference only
        self.device: torch.device = wrapped.device
        # float16 overflows now and then by design: its loss scaler lowers the scale and goes on
        self.scales_loss = bool(wrapped.fp16_enabled())

    @property
    def module(self) -> Any:
        """The model itself; under ZeRO-3 its parameters are shards."""
        return self._wrapped.module

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self._wrapped.zero_optimization_stage())

    def accumulate(self, batch: MicroBatch, *, step_tokens: int, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch; gradients add up until `update`.

        Args:
            step_tokens: supervised tokens of the whole optimizer step, over all workers.
            last: whether this is the worker's last micro-batch of the step.

        Returns:
            The summed loss of the micro-batch, a detached scalar.
        """
        self._wrapped.set_gradient_accumulation_boundary(last)
        loss = self._loss(batch)
        # DeepSpeed divides by the number of workers; the step's mean divides by its supervised tokens
        scale = torch.full_like(loss, self._world / step_tokens)
        # a loss that is not finite may have finite gradients: NaN makes `update` drop them, on every worker
        self._wrapped.backward(loss * scale.where(loss.isfinite(), torch.nan), scale_wrt_gas=False)
        return loss.detach()

    def _loss(self, batch: MicroBatch) -> torch.Tensor:
        there = to_device(batch, self.device, attention=self.module.config._attn_implementation)
        return summed_loss(self._wrapped, there, head=self._head, chunk_tokens=self._loss_chunk_tokens)

    def update(self, learning_rate: float) -> float:
        """Clips, takes one optimizer step and clears the gradients; returns the norm before clipping.

        Where that norm is not finite, weights and optimizer states stay as they were.
        """
        for group in self._wrapped.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        if not self._plain:
            self._wrapped.step()  # leaves the weights alone where the norm is not finite
            return float(self._wrapped.get_global_grad_norm())
        norm = self._clip_unsharded()
        if math.isfinite(norm):
            self._wrapped.step()
        else:
            self._wrapped.zero_grad()
        return norm

    @property
    def _plain(self) -> bool:
        """ZeRO-0 in float32: DeepSpeed wraps no optimizer, so clipping and its norm are ours."""
        return self.stage == 0 and not (self._wrapped.bfloat16_enabled() or self._wrapped.fp16_enabled())

    def _clip_unsharded(self) -> float:
        limit = self._max_grad_norm or float("inf")
        return float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit))

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch) -> torch.Tensor:
        """The summed loss of a micro-batch without gradients, a scalar."""
        self._wrapped.eval()
        loss = self._loss(batch)
        self._wrapped.train()
        return loss

    def snapshot(self, scratch: Path) -> Snapshot:
        """A copy of this worker's shard in host memory; every worker calls it.

        Args:
            scratch: a new folder of this worker on the file system that the shard will be written to.
        """
        scratch.mkdir(parents=True)
        recorder, own = Recorder(), self._wrapped.checkpoint_engine
        self._wrapped.checkpoint_engine = recorder
        try:
            self._wrapped.save_checkpoint(str(scratch), tag=TAG, save_latest=False)
        finally:
            self._wrapped.checkpoint_engine = own
        return Snapshot(states=recorder.states, scratch=scratch)

    def save(self, folder: Path) -> None:
        """Every worker writes its own shard below `folder`; returns when all have."""
        self.snapshot(folder / f".scratch-{self._wrapped.global_rank}").write(folder)
        deepspeed.comm.barrier()

    def load(self, folder: Path) -> None:
        """Takes model and optimizer states from a folder that `save` wrote with as many workers.

        Raises:
            RuntimeError: DeepSpeed found nothing to load (it only warns).
        """
        path, _ = self._wrapped.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed loaded nothing from {folder}; wanted {TAG}/*.pt of {self._world} workers")
        if self.stage > 0:  # without ZeRO nothing is offloaded
            cpu_adam.replay(self._wrapped.optimizer.optimizer)

    def load_universal(self, folder: Path) -> None:
        """Takes the states from a folder of `fulltune.engine.universal`, written by any number of workers."""
        optimizer = self._wrapped.optimizer.optimizer
        settings = universal.settings_of(optimizer)
        self._wrapped._config.load_universal_checkpoint = True
        try:
            self.load(folder)
        finally:
            self._wrapped._config.load_universal_checkpoint = False
        universal.mend(optimizer, settings)


def build(config: RunConfig, model_dir: Path, *, num_workers: int) -> Engine:
    """Loads the model (partitioned while it loads under ZeRO-3) and hands it to DeepSpeed."""
    complete = ds_settings.complete(config, num_workers=num_workers)
    chunk = loss_chunk_tokens(config, model_dir)
    model, partitioned = load_for(config, complete, model_dir)
    wrapped, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(model, config, complete), config=complete, dist_init_required=False
    )
    return Engine(
        wrapped,
        max_grad_norm=config.train.max_grad_norm,
        loss_chunk_tokens=chunk,
        world=num_workers,
        keep_alive=partitioned,
    )


def loss_chunk_tokens(config: RunConfig, model_dir: Path) -> int:
    """Tokens whose logits exist at the same time; 0, all of them, where the head is not the end of the model.

    Also 0 in float16: its loss scale reaches the chunks' gradients only after they were rounded.
    """
    if device.dtype_name(config.model.dtype, use_gpu=config.ray.use_gpu) == "float16":
        return 0
    architecture = AutoConfig.from_pretrained(model_dir)
    return config.train.loss_chunk_tokens if head_ends_the_model(architecture) else 0


def load_for(config: RunConfig, complete: dict[str, Any], model_dir: Path) -> tuple[Any, object]:
    """The model, partitioned while it loads under ZeRO-3, and what must be kept alive for as long as it trains."""
    # DeepSpeed takes over the process group that is there; before that, zero.Init believes in a single worker
    deepspeed.init_distributed(dist_backend=device.backend(use_gpu=config.ray.use_gpu), verbose=False)
    # must be alive before from_pretrained, or every worker materialises the whole model
    partitioned = HfDeepSpeedConfig(complete) if ds_settings.stage(complete) == 3 else None
    return load_model(config, model_dir), partitioned


def load_model(config: RunConfig, model_dir: Path) -> Any:
    """The causal language model with the attention and dtype of this device."""
    attention.register()
    dtype = device.dtype_name(config.model.dtype, use_gpu=config.ray.use_gpu)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=device.torch_dtype(dtype),
        attn_implementation=device.training_attention(dtype, use_gpu=config.ray.use_gpu),
    )
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model


def _optimizer(model: Any, config: RunConfig, complete: dict[str, Any]) -> Any:
    train = config.train
    groups = parameter_groups(model.named_parameters(), train)
    common: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
    }
    if ds_settings.offloads_optimizer(complete):
        return prebuild.cpu_adam()(groups, adamw_mode=True, **common)
    return torch.optim.AdamW(groups, **common, **device.ADAMW_FLAVOUR)


def parameter_groups(named: Iterable[tuple[str, torch.nn.Parameter]], train: TrainConfig) -> list[dict[str, Any]]:
    """One group per weight decay and multiplier of the learning rate; matrices decay, vectors (norms, biases) do not.

    Raises:
        UserError: a pattern of `train.lr_multipliers` that fits no parameter.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    unused = set(train.lr_multipliers)
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        pattern = next((p for p in train.lr_multipliers if fnmatchcase(name, p)), None)
        unused.discard(str(pattern))
        decay = train.weight_decay if _rank(parameter) > 1 else 0.0
        groups.setdefault((decay, train.lr_multipliers.get(str(pattern), 1.0)), []).append(parameter)
    if unused:
        raise UserError(
            got=f"train.lr_multipliers: no parameter is named like {', '.join(sorted(unused))}",
            wanted="patterns as in '*embed_tokens*', the first that fits a name decides",
            fix="remove them, or look up the names in the model's safetensors index",
        )
    return [{"params": group, "weight_decay": decay, "lr_scale": scale} for (decay, scale), group in groups.items()]


def _rank(parameter: torch.nn.Parameter) -> int:
    """Dimensions of the whole parameter; under ZeRO-3 the tensor itself is a flat shard."""
    shape: Sequence[int] = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape)


def to_device(batch: MicroBatch, target: torch.device, *, attention: str) -> MicroBatch:
    """The same micro-batch on the device, its boundaries where the attention reads them."""
    return MicroBatch(
        input_ids=device.copy(batch.input_ids, target),
        position_ids=device.copy(batch.position_ids, target),
        cu_seq_lens=device.copy(batch.cu_seq_lens, device.boundaries_device(attention, target)),
        max_length=batch.max_length,
        keep=device.copy(batch.keep, target),
        targets=device.copy(batch.targets, target),
        weight=batch.weight,
    )
