"""Continuous batching: a row that has stopped makes room at once for the next prompt, so the batch stays full.

    prompts -> slots (one per row: its keys and values) -> one forward per token of all rows -> (prompt, tokens)

Every forward takes one packed row of tokens without padding: the last token of each open row and all tokens of the
prompts that have just got a slot. What all prompts begin with is computed and stored once (Juravsky et al. 2024,
"Hydragen"); the scheme is Yu et al. 2022 ("Orca") with slots of equal length instead of pages: prompts come sorted
by length, so little of a slot stays empty, and a slot is read without gathering pages. It is the default of `predict`,
because it is faster than transformers' paged path on a CPU (benchmarks/generation_throughput.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

SLOTS = "fulltune_slots"
PREFILL_TOKENS = 2048  # of new prompts in one forward: bounds its memory
MAX_ROWS = 128  # more rows give no more throughput: the arithmetic is the bound by then
REFILL = 8  # new prompts wait until an eighth of the slots is free, so that they come in together
SHARED_TOKENS = 16  # a shorter common beginning is not worth attention in two parts
PROBE = ((5, 3, 7), (11, 2, 13, 8), (9, 4))  # a beginning and two rows; any tokens will do
PROBE_TOLERANCE = 1e-3  # of logits, relative, in float32; bfloat16 rounds more
COARSE_TOLERANCE = 0.05


@dataclass(slots=True)
class Step:
    """Which slots the tokens of one forward belong to: first one token per open row, then whole new prompts."""

    columns: torch.Tensor  # (rows,) where in its slot each open row writes its key and value
    hidden: torch.Tensor  # (rows, 1, 1, width), -inf where a slot holds nothing of its row
    width: int  # columns of the longest open row
    lengths: list[int]  # of the new prompts; they take the slots after the open rows
    padded: torch.Tensor  # (new, longest): index of each token among the new ones; padding repeats a row's last
    packed: torch.Tensor  # (new tokens,): index of each token in `padded`, flat

    @property
    def rows(self) -> int:
        return len(self.columns)


@dataclass(slots=True)
class Layer:
    """Keys and values of one layer: of the slots, and of what all prompts begin with."""

    keys: torch.Tensor  # (slots, key heads, columns, head size)
    values: torch.Tensor
    prefix_keys: torch.Tensor  # (key heads, prefix, head size)
    prefix_values: torch.Tensor


@dataclass(slots=True)
class Slots:
    """Keys and values of all layers. A layer's tensors are made when its first key arrives."""

    count: int
    columns: int
    step: Step | None = None  # None while the common beginning is computed
    layers: dict[int, Layer] = field(default_factory=dict)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Stores keys and values and attends: (tokens, query heads, head size)."""
        if self.step is None:
            self.layers[layer] = self._layer(key[0], value[0])
            return _causal(query, key, value, scale)[0]
        if layer not in self.layers:
            self.layers[layer] = self._layer(key[0, :, :0], value[0, :, :0])
        at, rows, parts = self.layers[layer], self.step.rows, []
        if rows:
            last = [x[0, :, :rows].transpose(0, 1) for x in (query, key, value)]
            parts.append(_continued(at, self.step, last[0], last[1], last[2], scale))
        if self.step.lengths:
            parts.append(_begun(at, self.step, query[0, :, rows:], key[0, :, rows:], value[0, :, rows:], scale))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def move(self, source: Sequence[int], target: Sequence[int], width: int) -> None:
        """Rows change slots, so that the open ones stand side by side."""
        for layer in self.layers.values():
            for tensor in (layer.keys, layer.values):
                tensor[list(target), :, :width] = tensor[list(source), :, :width]

    def _layer(self, prefix_key: torch.Tensor, prefix_value: torch.Tensor) -> Layer:
        heads, _, size = prefix_key.shape
        keys, values = (
            # zeros: what no row has written is masked, but a NaN would come through a product with 0
            x.new_zeros(self.count, heads, self.columns, x.shape[-1])
            for x in (prefix_key, prefix_value)
        )
        return Layer(keys, values, prefix_key, prefix_value)


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    slots: Slots | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over slots, in the signature of transformers' attention functions; batch and queries as `Step` says.

    Args:
        query: (1, query heads, tokens, head size)
        key, value: (1, key heads, tokens, head size)

    Raises:
        ValueError: the architecture wants what slots do not have; static batches answer for it.
    """
    window = other.get("sliding_window")
    if slots is None or attention_mask is not None or other.get("softcap") or other.get("s_aux") is not None:
        raise ValueError(f"{SLOTS} has no masks, no soft-capping and no attention sinks: got {sorted(other)}")
    if window and window < slots.columns + max((x.prefix_keys.shape[1] for x in slots.layers.values()), default=0):
        raise ValueError(f"{SLOTS} has no sliding window: got one of {window} tokens for slots of {slots.columns}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return slots.attend(int(module.layer_idx), query, key, value, scale)[None], None  # type: ignore[arg-type]


def _continued(
    at: Layer, step: Step, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """One token of each open row, all (rows, heads, head size). Query heads of one key head are attended together."""
    rows, heads, size = key.shape
    every = torch.arange(rows, device=key.device)
    at.keys[every, :, step.columns] = key
    at.values[every, :, step.columns] = value
    keys, values = at.keys[:rows, :, : step.width], at.values[:rows, :, : step.width]
    grouped = query.reshape(rows, heads, -1, size) * scale  # (rows, key heads, group, head size)
    scores = torch.matmul(grouped, keys.transpose(2, 3)) + step.hidden  # (rows, key heads, group, width)
    shared = at.prefix_keys.shape[1]
    if not shared:
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return torch.matmul(weights, values).reshape(rows, -1, values.shape[-1])
    group = grouped.shape[2]
    together = grouped.transpose(0, 1).reshape(heads, rows * group, size)  # all rows read the prefix in one product
    before = torch.matmul(together, at.prefix_keys.transpose(1, 2)).view(heads, rows, group, shared).transpose(0, 1)
    weights = torch.cat([before, scores], dim=-1).softmax(-1, dtype=torch.float32).to(values.dtype)
    own = torch.matmul(weights[..., shared:], values)
    of_prefix = weights[..., :shared].transpose(0, 1).reshape(heads, rows * group, shared)
    first = torch.matmul(of_prefix, at.prefix_values).view(heads, rows, group, -1).transpose(0, 1)
    return (own + first).reshape(rows, -1, values.shape[-1])


def _begun(
    at: Layer, step: Step, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """All tokens of the new prompts, packed (heads, tokens, head size) -> (tokens, query heads, head size)."""
    new, longest = step.padded.shape
    # padding stands at the end, where causal attention hides it from every token that counts
    query, key, value = (x[:, step.padded].transpose(0, 1) for x in (query, key, value))  # (new, heads, longest, size)
    at.keys[step.rows : step.rows + new, :, :longest] = key
    at.values[step.rows : step.rows + new, :, :longest] = value
    if at.prefix_keys.shape[1]:
        key = torch.cat([at.prefix_keys.expand(new, -1, -1, -1), key], dim=2)
        value = torch.cat([at.prefix_values.expand(new, -1, -1, -1), value], dim=2)
    return _causal(query, key, value, scale).reshape(new * longest, query.shape[1], -1)[step.packed]


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Every query sees the keys up to its own, which are the last ones: (batch, tokens, query heads, head size)."""
    tokens, before = query.shape[2], key.shape[2] - query.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if not before:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    else:
        mask = torch.ones(tokens, tokens + before, dtype=torch.bool, device=query.device).tril(before)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


@dataclass(slots=True)
class Row:
    """A prompt in its slot, and what was written after it."""

    name: str
    own: Sequence[int]  # of the prompt, without what all prompts share
    new: list[int] = field(default_factory=list)


def write(
    model: Any,
    prompts: Mapping[str, Sequence[int]],
    *,
    limit: int,
    ended: Callable[[list[int]], bool],
    cache_tokens: int,
) -> Iterator[list[tuple[str, list[int]]]]:
    """Greedy continuations, each as soon as it has ended; the longest prompts come first.

    Args:
        prompts: token ids by name.
        limit: of new tokens.
        ended: says of the tokens written so far whether the last of them ends the row.
        cache_tokens: how many tokens the slots may hold together; there is one slot at least.

    Yields:
        the name of a prompt with its new tokens, the one that ended it included.
    """
    shared = shared_prefix(list(prompts.values())) if len(prompts) > 1 else 0
    shared = shared if shared >= SHARED_TOKENS else 0
    waiting = sorted((Row(name, ids[shared:]) for name, ids in prompts.items()), key=lambda r: (-len(r.own), r.name))
    common = list(next(iter(prompts.values()))[:shared]) if shared else []
    with _attention(model), torch.inference_mode():
        while waiting:
            # a slot is as long as the longest prompt: much shorter ones wait for a session with shorter slots
            columns = len(waiting[0].own) + limit
            count = max(1, min(MAX_ROWS, (cache_tokens - shared) // columns))
            fitting = max(count, sum(2 * (len(row.own) + limit) >= columns for row in waiting))
            session, waiting = waiting[:fitting], waiting[fitting:]
            yield from _session(model, session, common, Slots(min(count, len(session)), columns), limit, ended)


def _session(
    model: Any,
    waiting: Sequence[Row],
    common: Sequence[int],
    slots: Slots,
    limit: int,
    ended: Callable[[list[int]], bool],
) -> Iterator[list[tuple[str, list[int]]]]:
    """Rows of similar length through one set of slots."""
    if common:
        _forward(model, common, range(len(common)), [len(common) - 1], slots)
    queue, rows = deque(waiting), list[Row]()
    while queue or rows:
        new = _admitted(queue, len(rows), slots.count)
        tokens = _advance(model, rows, new, common, slots).argmax(-1).tolist()
        rows += new
        for row, token in zip(rows, tokens, strict=True):
            row.new.append(token)
        done = [len(row.new) >= limit or ended(row.new) for row in rows]
        if any(done):
            yield [(row.name, row.new) for row, is_done in zip(rows, done, strict=True) if is_done]
        rows = _closed_up(rows, done, slots)


def _advance(model: Any, rows: Sequence[Row], new: Sequence[Row], common: Sequence[int], slots: Slots) -> torch.Tensor:
    """One forward: logits of the next token of the open rows and of the new ones, (rows + new, vocabulary)."""
    slots.step = _step(rows, new, model.device)
    ids = [row.new[-1] for row in rows] + [token for row in new for token in row.own]
    places = [len(row.own) + len(row.new) - 1 for row in rows] + [i for row in new for i in range(len(row.own))]
    ends = [*range(len(rows)), *(len(rows) - 1 + end for end in accumulate(len(row.own) for row in new))]
    return _forward(model, ids, [len(common) + place for place in places], ends, slots)


def _admitted(waiting: deque[Row], open_rows: int, count: int) -> list[Row]:
    """The next prompts, where enough slots are free to make a forward with them worth it."""
    free = count - open_rows
    if not waiting or (open_rows and free < min(len(waiting), max(1, count // REFILL))):
        return []
    new: list[Row] = []
    tokens = 0
    while waiting and len(new) < free and (not new or tokens + len(waiting[0].own) <= PREFILL_TOKENS):
        new.append(waiting.popleft())
        tokens += len(new[-1].own)
    return new


def _step(rows: Sequence[Row], new: Sequence[Row], device: torch.device) -> Step:
    columns = torch.tensor([len(row.own) + len(row.new) - 1 for row in rows], dtype=torch.long)
    width = int(columns.max()) + 1 if rows else 0
    hidden = torch.zeros(len(rows), width).masked_fill(torch.arange(width)[None] > columns[:, None], float("-inf"))
    lengths = [len(row.own) for row in new]
    longest = max(lengths, default=0)
    sizes = torch.tensor(lengths, dtype=torch.long)[:, None]  # (new, 1)
    inside = torch.arange(longest)[None]  # (1, longest)
    padded = (sizes.cumsum(0) - sizes) + torch.minimum(inside, sizes - 1)
    packed = (inside < sizes).flatten().nonzero()[:, 0]
    columns, hidden, padded, packed = (x.to(device) for x in (columns, hidden[:, None, None], padded, packed))
    return Step(columns=columns, hidden=hidden, width=width, lengths=lengths, padded=padded, packed=packed)


def _forward(
    model: Any, ids: Sequence[int], positions: Sequence[int], ends: Sequence[int], slots: Slots
) -> torch.Tensor:
    """Logits after the tokens at `ends`: (ends, vocabulary)."""
    logits = model(
        input_ids=torch.tensor([ids], device=model.device),
        position_ids=torch.tensor([positions], device=model.device),
        logits_to_keep=torch.tensor(ends, device=model.device),
        use_cache=False,
        slots=slots,
    ).logits[0]
    return torch.as_tensor(logits)


def _closed_up(rows: list[Row], done: Sequence[bool], slots: Slots) -> list[Row]:
    """The open rows; those at the end move into the slots that have become free before them."""
    count = len(rows) - sum(done)
    holes = [i for i in range(count) if done[i]]
    last = [i for i in range(count, len(rows)) if not done[i]]
    if holes:
        slots.move(last, holes, max(len(rows[i].own) + len(rows[i].new) for i in last))
        for source, target in zip(last, holes, strict=True):
            rows[target] = rows[source]
    return rows[:count]


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows share; at least one token of every row stays outside."""
    limit = min(len(row) for row in rows) - 1
    return next((i for i in range(limit) if len({row[i] for row in rows}) > 1), limit)


def unsupported(model: Any) -> str | None:
    """Why slots cannot serve this model; None where their logits are those of the model's own attention."""
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    try:
        difference = _probe(model)
    except Exception as error:  # whatever an architecture makes of it, static batches serve it
        return f"{type(error).__name__}: {error}"
    bound = PROBE_TOLERANCE if model.dtype == torch.float32 else COARSE_TOLERANCE
    return None if difference <= bound else f"logits differ by {difference:.1g}"


def _probe(model: Any) -> float:
    """Relative difference between logits over slots and over whole rows, for two rows that write a few tokens.

    They share their beginning, and the second comes in while the first is open.
    """
    common, queue = PROBE[0], [[Row("a", PROBE[1])], [Row("b", PROBE[2])], [], []]
    slots = Slots(2, len(PROBE[1]) + len(queue))
    rows, found, texts = list[Row](), list[torch.Tensor](), list[list[int]]()
    with _attention(model), torch.inference_mode():
        _forward(model, common, range(len(common)), [len(common) - 1], slots)
        for new in queue:
            found.append(_advance(model, rows, new, common, slots))
            rows += new
            texts += [[*common, *row.own, *row.new] for row in rows]
            for row, token in zip(rows, found[-1].argmax(-1).tolist(), strict=True):
                row.new.append(token)
    with torch.inference_mode():
        whole = [model(torch.tensor([text], device=model.device), use_cache=False).logits[0, -1] for text in texts]
    over_slots, expected = torch.cat(found).float(), torch.stack(whole).float()
    return float((over_slots - expected).norm() / expected.norm())


@contextmanager
def _attention(model: Any) -> Iterator[None]:
    """The model attends over slots for the duration."""
    from transformers import AttentionInterface

    AttentionInterface.register(SLOTS, slot_attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(SLOTS)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
