"""What can generate, behind one interface: `--engine` of `fulltune predict`.

| name | batches | for |
|---|---|---|
| `hf` | continuous, ours; static where the model's attention does not allow it | the default |
| `hf-static` | static, of prompts of similar length | comparison, and architectures of any kind |
| `hf-paged` | continuous, transformers' paged attention | GPUs with FlashAttention |
| `vllm` | vLLM's | GPUs; an optional extra |

An API model is no engine: `evaluation.predict_api` asks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from fulltune.config import PromptStyle
    from fulltune.generate import Answer, Batching, Prompt
    from tasks.base import Record, Task

EngineName = Literal["hf", "hf-static", "hf-paged", "vllm"]
NAMES: tuple[str, ...] = get_args(EngineName)


class Engine(Protocol):
    """A loaded model that answers prompts greedily."""

    @property
    def batching(self) -> str:
        """How it batches, as found out when it was loaded."""

    def prompt(self, record: Record, shots: Sequence[Record]) -> Prompt:
        """The prompt of a record, in the style the engine was loaded for."""

    def answers(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_tokens: int) -> Iterator[list[Answer]]:
        """An answer to each prompt; those that were finished by the same step together, before the next one."""


def check(name: EngineName) -> None:
    """UserError where an engine needs a package that is not installed."""
    if name == "vllm":
        from fulltune import offline_vllm

        offline_vllm.require()


def family(name: EngineName) -> str:
    """Engines of one family write the same tokens, so that one may go on where another was."""
    return name.partition("-")[0]


def load(name: EngineName, folder: Path, task: Task, *, prompt_style: PromptStyle, use_gpu: bool) -> Engine:
    """The engine with the model of a Hugging Face folder."""
    if name == "vllm":
        from fulltune import offline_vllm

        return offline_vllm.load(folder, task, prompt_style=prompt_style, use_gpu=use_gpu)
    from fulltune import generate

    batchings: dict[str, Batching] = {"hf": "continuous", "hf-static": "static", "hf-paged": "paged"}
    return generate.load(folder, task, prompt_style=prompt_style, use_gpu=use_gpu, batching=batchings[name])
