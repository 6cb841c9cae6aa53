"""Configuration: a YAML recipe plus `dotted.key=value` overrides becomes one frozen, fully checked `RunConfig`.

First station of the flow; every later one reads the resolved object, which is stored as `config.yaml` in the run
folder. Unknown keys are errors that name the nearest known key. No torch here, so `--print-config` is instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from fulltune.schema import Section, checked, read_tree

# the task's own format, its natural-language baseline prompt, and that prompt inside the model's chat template
PromptStyle = Literal["structured", "natural", "chat"]


class TokenizerTraining(Section):
    """A byte-level BPE trained on the task's own training text, for tiny models built from nothing."""

    vocab_size: int = Field(1024, ge=300, description="tokens before the task's special tokens are added")


class ModelConfig(Section):
    """Which model is tuned and how it is loaded."""

    name_or_path: str | None = Field(None, description="hub id or folder (safetensors, or GGUF files)")
    revision: str | None = Field(None, description="hub revision, for a run that can be repeated")
    init: Literal["pretrained", "random"] = "pretrained"
    config: dict[str, Any] = Field(default_factory=dict, description="architecture of a randomly initialised Llama")
    tokenizer: TokenizerTraining | None = Field(None, description="train a tokenizer on the task's text")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA, float32 on CPU"
    )
    new_token_init: Literal["mean_noise", "mean", "covariance", "description"] = Field(
        "mean_noise", description="how rows of new tokens start (docs/token_init.md)"
    )
    stop_token_init: Literal["eos", "new_token_init"] = Field("eos", description="eos: the stop token starts as EOS")

    @model_validator(mode="after")
    def _source_is_named(self) -> ModelConfig:
        if self.init == "pretrained" and not self.name_or_path:
            raise ValueError("model.name_or_path is needed unless model.init is 'random'")
        if self.init == "random" and not (self.config and (self.tokenizer or self.name_or_path)):
            raise ValueError("model.init: random needs model.config and either model.tokenizer or model.name_or_path")
        return self


class MethodConfig(Section):
    """What is trained: every parameter."""

    kind: Literal["full"] = "full"


class MixturePart(Section):
    """One source of a mixture; without count or weight it gives each of its rows once per epoch."""

    task: str | None = Field(None, description="default: the recipe's task")
    task_options: dict[str, Any] = Field(default_factory=dict)
    source: str | None = Field(None, description="bundled, hub, or a path; default: data.source")
    columns: dict[str, str] = Field(default_factory=dict, description="source column -> task column")
    limit: int | None = Field(None, ge=1, description="only the first rows of the source")
    count: int | None = Field(None, ge=1, description="exactly so many examples per epoch, repeated where too few")
    weight: float | None = Field(None, gt=0, description="share of what the weighted parts hold together")

    @model_validator(mode="after")
    def _is_measured_once(self) -> MixturePart:
        if self.count is not None and self.weight is not None:
            raise ValueError("a part of a mixture has a count or a weight, not both")
        return self


class DataConfig(Section):
    """Where the records come from and how they become token sequences."""

    source: str = Field("bundled", description="bundled, hub, or a path to a file or folder")
    columns: dict[str, str] = Field(default_factory=dict, description="source column -> task column")
    max_length: int = Field(512, ge=8, description="longer rows are left out, counted and listed")
    packing: bool = Field(True, description="several examples per micro-batch, each with attention of its own")
    loader: Literal["exact", "streaming"] = Field(
        "exact",
        description="exact: the same examples per step for any number of workers; streaming: tokenise on the way, for "
        "corpora larger than a disk (needs train.max_steps and a free CPU)",
    )
    shuffle_buffer: int = Field(10_000, ge=0, description="streaming: examples among which a worker shuffles")
    loss_on: Literal["completion", "all"] = "completion"
    limit: int | None = Field(None, ge=1, description="only the first rows of the training split")
    mixture: tuple[MixturePart, ...] = Field((), description="several training sources in place of `source`")

    @model_validator(mode="after")
    def _settings_go_together(self) -> DataConfig:
        if self.mixture and self.limit is not None:
            raise ValueError("data.limit does not apply to a mixture: give its parts a limit")
        if self.mixture and self.loader == "streaming":
            raise ValueError("data.loader: streaming takes one source, not a mixture")
        return self


_Positive = Annotated[float, Field(gt=0)]


class TrainConfig(Section):
    """The optimisation itself. Batch sizes count examples of one optimizer step over all workers."""

    num_epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimizer steps")
    learning_rate: float = Field(5e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    lr_scheduler: Literal["linear", "cosine", "constant", "inverse_sqrt", "wsd"] = "linear"
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="where the schedule ends, as a share of learning_rate")
    decay_steps: int | None = Field(None, ge=1, description="wsd: length of the final decay; default: a tenth")
    lr_multipliers: dict[str, _Positive] = Field(
        default_factory=dict, description="parameter name pattern, such as '*embed_tokens*' -> factor on the rate"
    )
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 switches clipping off")
    global_batch_size: int = Field(16, ge=1, description="examples per optimizer step, all workers together")
    micro_batch_tokens: Annotated[int, Field(ge=8)] | Literal["auto"] = Field(
        4096, description="tokens that one worker takes in one forward pass; auto: the plan's, corrected by preflight"
    )
    gradient_checkpointing: bool = False
    loss_chunk_tokens: int = Field(1024, ge=0, description="tokens whose logits exist at a time; 0: all of a pass")
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="a NaN or infinite loss or gradient norm")
    max_skips: int = Field(3, ge=0, description="steps that on_nonfinite: skip may leave out; one more stops the run")
    on_loss_spike: Literal["record", "stop"] = "record"
    spike_window: int = Field(50, ge=0, description="steps that say which loss is usual; 0 switches it off")
    spike_threshold: float = Field(10.0, gt=0, description="median absolute deviations above the median: a spike")
    seed: int = Field(42, ge=0)
    deterministic: bool = Field(False, description="on CUDA: bit-identical repetitions, slower; CPUs are without it")

    @property
    def token_budget(self) -> int:
        """`micro_batch_tokens` once it is a number: `auto` is replaced before a run is planned or starts."""
        assert self.micro_batch_tokens != "auto", "ray_jobs.auto or the plan decides first"
        return self.micro_batch_tokens


class RayConfig(Section):
    """Where the run takes place and where it keeps its files."""

    num_workers: int | tuple[int, int] = Field(
        1, description="how many, or [min, max]: as many of these as the cluster holds; the global batch stays"
    )
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    accelerator_type: str | None = Field(None, description="for example A10G, H100 or A100-80")
    usd_per_gpu_hour: float | None = Field(None, gt=0, description="what a GPU costs, in place of the listed price")
    storage_path: str = Field("runs", description="a folder that every node sees")
    name: str | None = Field(None, description="run name; re-using it resumes the run. Default: the recipe's name")
    max_failures: int = Field(3, ge=-1, description="worker failures that Ray mends by itself; -1: no limit")
    standby: bool = Field(
        True, description="keep one idle, imported process per worker: a restart is seconds, not half a minute"
    )
    collective_timeout_s: int = Field(1800, ge=1, description="a collective that takes longer ends the attempt")

    @field_validator("num_workers")
    @classmethod
    def _is_a_number_or_a_range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        low, high = (value, value) if isinstance(value, int) else value
        if not 1 <= low <= high:
            raise ValueError("wanted a number from 1, or [min, max] with 1 <= min <= max")
        return value

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run starts with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the run takes."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @field_validator("storage_path")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("object stores are not supported yet; name a folder that every node mounts")
        return value


class CheckpointConfig(Section):
    """When sharded checkpoints are written and which ones stay. The last step is always saved."""

    every_steps: int | None = Field(None, ge=1)
    keep_last: int = Field(2, ge=1)
    keep_best: bool = Field(True, description="also keep the one with the lowest validation loss")
    asynchronous: bool = Field(
        True, description="copy the shards to host memory and write them beside the training; false: wait for the disk"
    )
    upload_to: str | None = Field(None, description="also keep them on an object store, for example s3://bucket/prefix")


class ValidationConfig(Section):
    """Loss over the supervised tokens of the validation split and, with `metric`, the task's own score of answers."""

    every_steps: int | None = Field(None, ge=1)
    limit: int | None = Field(200, ge=1, description="first rows of the validation split")
    metric: str | None = Field(
        None, description="a metric of the task: answers are generated and scored beside training; picks the best"
    )
    patience: int | None = Field(None, ge=1, description="end after so many validations without a better metric")
    cpus: float = Field(1.0, ge=0, description="what the validation beside training may take; 0 shares the workers'")
    gpus: float = Field(0.0, ge=0)
    batch_tokens: int = Field(16384, ge=8, description="tokens of one generation batch")
    timeout_s: int = Field(3600, ge=1, description="a validation that takes longer is given up; the run goes on")

    @model_validator(mode="after")
    def _metric_has_steps(self) -> ValidationConfig:
        if self.metric is not None and self.every_steps is None:
            raise ValueError("validation.metric needs validation.every_steps")
        if self.patience is not None and self.metric is None:
            raise ValueError("validation.patience needs validation.metric")
        return self


class TrackingConfig(Section):
    """What is logged, into metrics.jsonl and for TensorBoard."""

    log_every_steps: int = Field(1, ge=1)
    tensorboard: bool = Field(True, description="also draw the curves as event files, in <run>/tensorboard")


class ReportModel(Section):
    """A row of the report: the base or the tuned model under a prompt, or a model behind an API."""

    model: str = Field(description="base, tuned, or openai:NAME for an OpenAI-compatible API")
    shots: int = Field(0, ge=0)
    prompt: PromptStyle | None = Field(None, description="default: natural for base models")
    label: str | None = Field(None, description="name of the row; default: from model, shots and prompt")
    base_url: str | None = Field(None, description="of the API, up to /v1")
    omit: tuple[str, ...] = Field((), description="parameters that the API does not take")
    budget_usd: float | None = Field(None, ge=0, description="hard limit of what the API may charge")
    max_requests: int | None = Field(None, ge=0, description="hard limit of requests to the API")
    concurrency: int = Field(4, ge=1, description="requests to the API at a time")
    timeout_s: float = Field(120.0, gt=0, description="of one request to the API")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key of the API")

    @property
    def is_api(self) -> bool:
        """Whether the answers come from an API."""
        return self.model.startswith("openai:")

    @model_validator(mode="after")
    def _is_known(self) -> ReportModel:
        if self.model not in ("base", "tuned") and not self.is_api:
            raise ValueError(f"report.models: {self.model!r} is none of base, tuned and openai:NAME")
        strange = self.model_dump(exclude_defaults=True, exclude={"model", "shots", "prompt", "label"})
        if strange and not self.is_api:  # by value: a stored configuration names every key
            raise ValueError(f"report.models: {', '.join(strange)} belong to a model openai:NAME, not to {self.model}")
        if self.is_api and self.prompt not in (None, "natural"):
            raise ValueError("report.models: an API puts its own template around the natural prompt; leave prompt out")
        return self


class ReportConfig(Section):
    """The comparison that follows the training."""

    split: Literal["train", "valid", "test"] = "test"
    limit: int | None = Field(None, ge=1)
    batch_tokens: int = Field(16384, ge=8, description="tokens a copy holds at once, prompts and answers together")
    usd_per_worker_hour: float | None = Field(
        None, ge=0, description="price of a worker, for the cost of tuning and of own answers"
    )
    prices: str | None = Field(None, description="file of API prices that win over the built-in table")
    models: tuple[ReportModel, ...] = (
        ReportModel(model="base"),
        ReportModel(model="base", shots=5),
        ReportModel(model="tuned"),
    )


class RunConfig(Section):
    """One run, completely described."""

    task: str = Field(description="a task's name, or path/to/file.py:TASK")
    task_options: dict[str, Any] = Field(default_factory=dict)
    model: ModelConfig
    method: MethodConfig = MethodConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    deepspeed: str | dict[str, Any] = Field("zero2", description="name in deepspeed_configs, auto, path or mapping")
    ray: RayConfig = RayConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()
    report: ReportConfig | None = None
    stages: tuple[dict[str, Any], ...] = Field((), description="runs in a row, each a change to this recipe: stages.py")

    @field_validator("task")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("task is empty; name one, for example viggo")
        return value

    @model_validator(mode="after")
    def _stream_has_an_end(self) -> RunConfig:
        if self.data.loader == "streaming" and self.train.max_steps is None:
            raise ValueError("data.loader: streaming needs train.max_steps, for the length of a stream is not known")
        return self

    @property
    def run_dir(self) -> Path:
        """`<storage_path>/<name>`, absolute."""
        assert self.ray.name is not None, "load() fills the name"
        return Path(self.ray.storage_path).expanduser().absolute() / self.ray.name


def load(recipe: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a recipe, applies overrides in order and checks the result.

    Raises:
        UserError: no such file, broken YAML, an override without "=", an unknown key, a value of the wrong kind.
    """
    tree = read_tree(recipe, overrides)
    tree.setdefault("ray", {})
    if isinstance(tree["ray"], dict):
        tree["ray"].setdefault("name", recipe.stem)
    return resolve(tree, origin=str(recipe))


def resolve(tree: Mapping[str, Any], origin: str) -> RunConfig:
    """A checked RunConfig from a plain mapping; every problem in one UserError."""
    return checked(tree, RunConfig, origin)


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load` reads it back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
