"""Batched greedy generation with a KV cache, on a whole (never a sharded) model.

    prompts (ids) -> continuous, paged or static batches -> tokens -> Answer (without the stop token)

Continuous batches (`fulltune.continuous`) are the default; static batches of prompts of similar length, written by
transformers' `generate`, serve the architectures whose attention the others do not cover. Either way, what prompts
have in common at their beginning (instructions, worked examples) is computed once.
The decoder keeps special tokens: an answer is cut by token id, not by text, so a model that writes its stop token
twice or runs past it is seen as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList

from fulltune import continuous, device, paged
from fulltune import tokenizer as tok
from fulltune.config import PromptStyle
from tasks.base import Record, Task

FIRST_TOKENS = 32  # of an answer, before rows that have stopped leave the batch
TAIL_TOKENS = 8  # how far back a stop string is looked for after each token

Batching = Literal["continuous", "paged", "static"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given for the record `id`."""

    id: str
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """What it wrote, without the stop token; "length" means that it was cut off."""

    id: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer: token ids, and strings for models that know no such token."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]


def prompt_of(
    tokenizer: tok.Tokenizer, task: Task, style: PromptStyle, record: Record, shots: Sequence[Record]
) -> Prompt:
    """The prompt of a record in this style; shots stand before it in the same style."""
    if style == "natural":
        return Prompt(record.id, tok.encode_text(tokenizer, task.baseline_prompt(record, shots)))
    if style == "chat":
        return Prompt(record.id, tok.encode_chat(tokenizer, task.baseline_prompt(record, shots)))
    worked = [segment for shot in shots for segment in task.render(shot)]
    before = tok.encode_examples(tokenizer, task, [worked], loss_on="all")[0][0] if worked else []
    ids = tok.encode_prompt(tokenizer, task, record)
    return Prompt(record.id, [*before, *ids[len(tok.bos_ids(tokenizer)) :]] if before else ids)


def stops_of(tokenizer: tok.Tokenizer, task: Task, style: PromptStyle, eos: int | Sequence[int] | None) -> Stops:
    """The task's stop token where the vocabulary has it, and every EOS; strings for natural prompts.

    Args:
        eos: what the model's own generation configuration names.
    """
    own = [eos] if eos is None or isinstance(eos, int) else eos
    ids = {tokenizer.eos_token_id, *own} - {None}
    if not task.stop or task.stop in tokenizer.get_vocab():
        ids.add(tok.stop_id(tokenizer, task))
    strings = task.baseline_stop if style != "structured" else tuple(filter(None, [task.stop]))
    return Stops(tuple(sorted(ids)), strings)


def ending(tokenizer: tok.Tokenizer, stops: Stops) -> Callable[[Sequence[int]], bool]:
    """Says whether the last of the tokens written so far ends the answer.

    Text is decoded only after a token that can be the end of a stop string, because it contains its last character.
    Characters outside ASCII may be spread over tokens, and a space may vanish in decoding: then every token can be.
    """
    last = {string[-1] for string in stops.strings}
    any_token = any(not char.isascii() or char == " " for char in last)
    # a token stands for one byte at least, special ones aside
    tail = max((len(string.encode()) for string in stops.strings), default=0) + TAIL_TOKENS
    known: dict[int, bool] = {}

    def can_end(token: int) -> bool:
        if token not in known:
            known[token] = any_token or not last.isdisjoint(tokenizer.decode([token], skip_special_tokens=False))
        return known[token]

    def ended(new: Sequence[int]) -> bool:
        if new[-1] in stops.ids:
            return True
        if not last or not can_end(new[-1]):
            return False
        text = tokenizer.decode(list(new[-tail:]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in stops.strings)

    return ended


def answer_of(
    tokenizer: tok.Tokenizer, task: Task, style: PromptStyle, prompt: Prompt, new: list[int], stops: Stops, limit: int
) -> Answer:
    """The answer that `new` tokens hold, at most `limit` of them; what comes after the first stop is ignored."""
    answer = _cut(tokenizer, prompt, new, stops, limit)
    return replace(answer, text=task.decode_text(answer.text)) if style == "structured" else answer


@dataclass(frozen=True)
class Generator:
    """A loaded model with its tokenizer; prompts are natural language or the task's structured format."""

    model: Any
    tokenizer: tok.Tokenizer
    prompt_style: PromptStyle
    task: Task
    batching: Batching = "continuous"

    def prompt(self, record: Record, shots: Sequence[Record]) -> Prompt:
        """The prompt of a record in this generator's style; shots stand before it in the same style."""
        return prompt_of(self.tokenizer, self.task, self.prompt_style, record, shots)

    @cached_property  # asked for every row of every batch, and a vocabulary is large
    def stops(self) -> Stops:
        """The task's stop token where the vocabulary has it, and every EOS; strings for natural prompts."""
        own = self.model.generation_config.eos_token_id
        return stops_of(self.tokenizer, self.task, self.prompt_style, own)

    def answers(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_tokens: int) -> Iterator[list[Answer]]:
        """Greedy answers to any number of prompts, those together that were finished by the same step.

        Args:
            batch_tokens: what a static batch, or the cache of the others, holds at most; answers included.
        """
        by_id = {prompt.id: prompt for prompt in prompts}
        for finished in self.tokens(prompts, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens):
            yield [self._answer(by_id[name], new, max_new_tokens) for name, new in finished]

    def tokens(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_tokens: int
    ) -> Iterator[list[tuple[str, list[int]]]]:
        """What is written after each prompt, by id and step; some batches go on after the stop that ends an answer."""
        ids = {prompt.id: prompt.ids for prompt in prompts}
        longest = max(map(len, ids.values()), default=0) + max_new_tokens
        window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        # slots see everything: where the model's window is shorter, only its own attention will do
        if self.batching == "static" or (self.batching == "continuous" and window and window < longest):
            for batch in batches(prompts, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens):
                yield from self._batch(batch, max_new_tokens)
        elif self.batching == "paged":
            yield from paged.write(self.model, ids, self.stops.ids, limit=max_new_tokens, cache_tokens=batch_tokens)
        else:
            ended = ending(self.tokenizer, self.stops)
            yield from continuous.write(self.model, ids, limit=max_new_tokens, ended=ended, cache_tokens=batch_tokens)

    def _answer(self, prompt: Prompt, new: list[int], limit: int) -> Answer:
        return answer_of(self.tokenizer, self.task, self.prompt_style, prompt, new, self.stops, limit)

    def log_likelihood(self, record: Record, answer: str) -> float:
        """Mean log-probability per token of `answer` after the natural prompt without shots; -inf for no answer."""
        prompt = self.prompt(record, ()).ids
        answer_ids = self.tokenizer.encode(answer, add_special_tokens=False)
        if not answer_ids:
            return float("-inf")
        ids = torch.tensor([[*prompt, *answer_ids]], device=self.model.device)  # (1, T)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, logits_to_keep=len(answer_ids) + 1).logits[0, :-1]  # (A, vocabulary)
        chosen = logits.float().log_softmax(-1).gather(1, ids[0, len(prompt) :, None])  # (A, 1)
        return float(chosen.mean())

    def answer(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[Answer]:
        """Greedy answers of one static batch, in the order of the prompts."""
        written = dict(chain.from_iterable(self._batch(prompts, max_new_tokens)))
        return [self._answer(prompt, written[prompt.id], max_new_tokens) for prompt in prompts]

    def _batch(self, prompts: Sequence[Prompt], limit: int) -> Iterator[list[tuple[str, list[int]]]]:
        """Most answers are short and a few never end, so the batch writes a third of the limit first, and only the rows
        that have not stopped by then go on.
        """
        first = min(limit, max(FIRST_TOKENS, limit // 3))
        written = dict(zip((p.id for p in prompts), self._write(prompts, first), strict=True))
        open_rows = [p for p in prompts if first < limit and not self._stopped(written[p.id])]
        going_on = {prompt.id for prompt in open_rows}
        if len(going_on) < len(prompts):
            yield [(name, new) for name, new in written.items() if name not in going_on]
        if open_rows:
            longer = [Prompt(p.id, [*p.ids, *written[p.id]]) for p in open_rows]
            rest = self._write(longer, limit - first)
            yield [(p.id, [*written[p.id], *more]) for p, more in zip(open_rows, rest, strict=True)]

    def _stopped(self, new: Sequence[int]) -> bool:
        text = self.tokenizer.decode(new, skip_special_tokens=False) if self.stops.strings else ""
        return any(token in self.stops.ids for token in new) or any(string in text for string in self.stops.strings)

    def _write(self, prompts: Sequence[Prompt], limit: int) -> list[list[int]]:
        """At most `limit` new tokens per prompt; rows that stop early are filled up with the pad token."""
        width = max(len(prompt.ids) for prompt in prompts)
        pad = _pad_id(self.tokenizer)
        shared = continuous.shared_prefix([prompt.ids for prompt in prompts])
        # padding stands between what all prompts share and the rest, so that the shared part is computed once
        rows = [[*p.ids[:shared], *[pad] * (width - len(p.ids)), *p.ids[shared:]] for p in prompts]
        masks = [[1] * shared + [0] * (width - len(p.ids)) + [1] * (len(p.ids) - shared) for p in prompts]
        stops = self.stops
        strings = StoppingCriteriaList([_StopStrings(self.tokenizer, stops.strings, width)]) if stops.strings else None
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(rows, device=self.model.device),  # (B, width)
                attention_mask=torch.tensor(masks, device=self.model.device),
                past_key_values=self._computed(prompts[0].ids[:shared], copies=len(prompts)),
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=list(stops.ids),
                pad_token_id=pad,
                stopping_criteria=strings,
            )  # (B, width + new)
        new: list[list[int]] = output[:, width:].tolist()
        return new

    def _computed(self, ids: Sequence[int], *, copies: int) -> DynamicCache:
        """Keys and values of a prefix, computed once and repeated for every row; empty for an empty prefix."""
        cache = DynamicCache(config=self.model.config)
        if ids:
            row = torch.tensor([list(ids)], device=self.model.device)  # (1, prefix)
            self.model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(copies)
        return cache


def load(
    folder: Path,
    task: Task,
    *,
    prompt_style: PromptStyle,
    use_gpu: bool,
    dtype: str = "auto",
    batching: Batching = "continuous",
) -> Generator:
    """A model from a Hugging Face folder, whole, ready to generate.

    Where the model's attention does not support the batches asked for, they are static, and a warning says so.
    """
    name = device.dtype_name(dtype, use_gpu=use_gpu)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=device.torch_dtype(name), attn_implementation="sdpa"
    )
    model.to(device.inference_device(use_gpu=use_gpu)).eval()
    # sampling defaults of the model's authors would only draw warnings: decoding here is greedy
    model.generation_config.temperature = model.generation_config.top_p = model.generation_config.top_k = None
    why = {"continuous": continuous.unsupported, "paged": paged.unsupported}.get(batching, lambda _: None)(model)
    if why:
        log.warning("%s batches are not for %s (%s): static ones answer", batching, type(model).__name__, why)
        batching = "static"
    tokenizer = tok.load(str(folder))
    return Generator(model=model, tokenizer=tokenizer, prompt_style=prompt_style, task=task, batching=batching)


def batches(prompts: Sequence[Prompt], *, max_new_tokens: int, batch_tokens: int) -> Iterator[list[Prompt]]:
    """Prompts of similar length together; a batch holds at most `batch_tokens`, padding and answers included."""
    batch: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda p: (-len(p.ids), p.id)):
        width = len((batch or [prompt])[0].ids) + max_new_tokens
        if batch and width * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _pad_id(tokenizer: tok.Tokenizer) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _cut(tokenizer: tok.Tokenizer, prompt: Prompt, new: list[int], stops: Stops, limit: int) -> Answer:
    """The answer up to the first stop; the tokens counted include the stop token, which was generated too."""
    end = next((i for i, token in enumerate(new) if token in stops.ids), None)
    kept = new if end is None else new[:end]
    text = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    at = min((found for string in stops.strings if (found := text.find(string)) >= 0), default=-1)
    if at >= 0:
        text = text[:at]
        kept = _shortest_prefix(tokenizer, kept, len(text))
    stopped = end is not None or at >= 0
    return Answer(
        id=prompt.id,
        text=text,
        prompt_tokens=len(prompt.ids),
        completion_tokens=len(kept) + (1 if end is not None and at < 0 else 0),
        finish_reason="stop" if stopped or len(kept) < limit else "length",
    )


def _shortest_prefix(tokenizer: tok.Tokenizer, ids: list[int], length: int) -> list[int]:
    """The tokens that were needed for the first `length` characters."""
    for end in range(len(ids) + 1):
        if len(tokenizer.decode(ids[:end], skip_special_tokens=False)) >= length:
            return ids[:end]
    return ids


class _StopStrings(StoppingCriteria):
    """Ends a row once a stop string stands in what it has written lately (transformers' hook is a class)."""

    def __init__(self, tokenizer: tok.Tokenizer, strings: tuple[str, ...], width: int) -> None:
        self._tokenizer, self._strings, self._width = tokenizer, strings, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        start = max(self._width, input_ids.shape[1] - TAIL_TOKENS)
        tails = self._tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=False)
        return torch.tensor([any(s in tail for s in self._strings) for tail in tails], device=input_ids.device)
