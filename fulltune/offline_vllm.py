"""vLLM's offline engine (`--engine vllm`): the only place that imports vllm, and only when it is asked for.

    prompts (ids) -> vllm.LLM.generate, a round at a time -> tokens -> the same Answer as every engine's

vLLM is an optional extra. Its server needs none of this: it is an OpenAI-compatible endpoint (docs/api_models.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune import device
from fulltune import tokenizer as tok
from fulltune.config import PromptStyle
from fulltune.generate import Answer, Prompt, Stops, answer_of, prompt_of, stops_of
from tasks.base import Record, Task, UserError

ROUND = 512  # prompts handed over together: what a kill loses at most


@dataclass(frozen=True)
class OfflineEngine:
    """A model that vLLM has loaded, with what prompts and answers are made of."""

    vllm: Any
    llm: Any
    tokenizer: tok.Tokenizer
    prompt_style: PromptStyle
    task: Task
    stops: Stops
    batching: str = "vllm"

    def prompt(self, record: Record, shots: Sequence[Record]) -> Prompt:
        """The prompt of a record, token by token what the other engines are given."""
        return prompt_of(self.tokenizer, self.task, self.prompt_style, record, shots)

    def answers(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_tokens: int) -> Iterator[list[Answer]]:
        """Greedy answers in rounds; vLLM batches inside a round by the memory it has, so `batch_tokens` is not asked.

        Raises:
            RuntimeError: vLLM ended an answer for another reason than a stop or the limit.
        """
        del batch_tokens
        parameters = self.vllm.SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=list(self.stops.ids),
            stop=list(self.stops.strings) or None,
            skip_special_tokens=False,
        )
        for start in range(0, len(prompts), ROUND):
            some = prompts[start : start + ROUND]
            given = [{"prompt_token_ids": list(prompt.ids)} for prompt in some]
            outputs = self.llm.generate(given, parameters, use_tqdm=False)
            yield [self._answer(prompt, output.outputs[0]) for prompt, output in zip(some, outputs, strict=True)]

    def _answer(self, prompt: Prompt, written: Any) -> Answer:
        if written.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended the answer to {prompt.id} with {written.finish_reason!r}")
        new = list(written.token_ids)
        # the reason decides, not the number of tokens: a full context window cuts an answer off before the limit
        limit = len(new) + (written.finish_reason == "stop")
        return answer_of(self.tokenizer, self.task, self.prompt_style, prompt, new, self.stops, limit)


def load(folder: Path, task: Task, *, prompt_style: PromptStyle, use_gpu: bool) -> OfflineEngine:
    """A model from a Hugging Face folder, in vLLM.

    Raises:
        UserError: vLLM is not installed.
    """
    vllm = require()
    tokenizer = tok.load(str(folder))
    llm = vllm.LLM(
        model=str(folder),
        dtype=device.dtype_name("auto", use_gpu=use_gpu),
        seed=0,
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    stops = stops_of(tokenizer, task, prompt_style, _eos(folder))
    return OfflineEngine(vllm, llm, tokenizer, prompt_style, task, stops)


def require() -> Any:
    """The module `vllm`; UserError with the command that installs it where there is none."""
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            got=f"--engine vllm, and no vLLM here ({error})",
            wanted="the package vllm, on every node that predicts",
            fix="pip install 'fulltune[vllm]', or leave --engine out",
        ) from None
    return vllm


def _eos(folder: Path) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # a model folder may come without one
        return None
