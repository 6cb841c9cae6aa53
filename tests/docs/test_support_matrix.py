"""docs/support_matrix.md: every refusal that it lists is triggered, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fulltune import attention, checkpoint, comm, config, device, session
from fulltune.config import DataConfig, TrainConfig
from fulltune.engine import settings
from fulltune.stream import StreamPlanner
from ray_jobs import auto, recipes
from ray_jobs.plan import refuse_what_cannot_fit
from tasks.base import UserError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "support_matrix.md").read_text()
SAYS = dict(re.findall(r"^\| ([\w-]+) \| [^|]+ \| `([^`]+)` \|$", PAGE, re.M))


def demo(*overrides):
    return config.load(recipes.path("demo"), overrides)


def segments(**other):
    """A row of eight tokens in one segment."""
    q = torch.zeros(1, 1, 8, 4)
    mask = other.pop("attention_mask", None)
    boundaries = torch.tensor([0, 8])
    return attention.segment_attention(torch.nn.Module(), q, q, q, mask, cu_seq_lens_q=boundaries, **other)


def stream_of_two(folder):
    for rank in (0, 1):
        (folder / f"stream-{rank}.json").write_text('{"epoch": 0, "taken": 0}')
    data, train = DataConfig(loader="streaming"), TrainConfig(max_steps=1)
    StreamPlanner(lambda epoch: iter(()), data, train, comm.Workers(), say=print).restore(folder)


def other_run(folder):
    found = checkpoint.Found(path=folder, step=1, workers=1, meta={"fingerprint": {"zero_stage": 2}})
    session.refuse_other_run(found, {"zero_stage": 3})


def llama(*overrides):
    return config.load(recipes.path("viggo_llama2_7b"), overrides)


REFUSED = {
    "zero0-bf16": lambda _: settings.complete(demo("deepspeed=zero0", "model.dtype=bfloat16"), num_workers=1),
    "bf16-before-ampere": lambda _: device.refuse_dtype("bfloat16", "Tesla T4", (7, 5)),
    "padded-segments": lambda _: segments(attention_mask=torch.ones(1, 1, 8, 8)),
    "softcap-segments": lambda _: segments(softcap=30.0),
    "window-segments": lambda _: segments(sliding_window=4),
    "streaming-mixture": lambda _: demo("data.loader=streaming", "data.mixture=[{task: viggo}]", "train.max_steps=1"),
    "streaming-endless": lambda _: demo("data.loader=streaming", "train.max_steps=null"),
    "streaming-elastic": stream_of_two,
    "owned-keys": lambda _: settings.base(demo("deepspeed={gradient_clipping: 1.0}")),
    "other-settings": other_run,
    "auto-unknown": lambda folder: auto.decided(
        llama("deepspeed=auto", "ray.accelerator_type=null", f"ray.storage_path={folder}"), fetch=False, say=print
    ),
    "too-large": lambda _: refuse_what_cannot_fit(llama("ray.num_workers=1"), say=print),
    "object-store": lambda _: demo("ray.storage_path=s3://bucket/runs"),
    "metric-never": lambda _: demo("validation.metric=exact_match", "validation.every_steps=null"),
    "patience-blind": lambda _: demo("validation.metric=null", "validation.patience=2"),
}


def test_the_page_lists_what_is_tried_here():
    assert set(SAYS) == set(REFUSED)


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_the_words_of_the_page(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FULLTUNE_DATA", raising=False)
    with pytest.raises((UserError, ValueError), match=re.escape(SAYS[case])):
        REFUSED[case](tmp_path)


def test_what_is_next_to_a_refusal_is_taken():
    assert settings.complete(demo("deepspeed=zero1", "model.dtype=bfloat16"), num_workers=1)["bf16"]["enabled"]
    assert settings.complete(demo("deepspeed=zero0", "model.dtype=float32"), num_workers=1)
    device.refuse_dtype("bfloat16", "NVIDIA A10G", (8, 6))
    device.refuse_dtype("float16", "Tesla T4", (7, 5))
    assert segments()[0].shape == (1, 8, 1, 4)
    assert segments(sliding_window=8)[0].shape == (1, 8, 1, 4)


def test_every_word_of_the_tables_is_explained():
    """A cell says tested, faked, untested, refused or parsed only; nothing claims a GPU."""
    table = PAGE.split("## ZeRO stage by dtype")[1].split("*Parsed only*")[0]
    cells = [cell.strip() for line in table.splitlines()[4:] if line.startswith("|") for cell in line.split("|")[2:-1]]
    assert cells
    assert all(cell.split(",")[0] in {"tested", "untested", "refused", "parsed only"} for cell in cells)
    cuda = [line.split("|")[5:8] for line in table.splitlines()[4:] if line.startswith("| ZeRO")]
    assert len(cuda) == 9
    assert {cell.strip() for row in cuda for cell in row} <= {"untested", "refused"}
