"""Which of the choices that fit is taken: speed within what a plan can tell, then room, then simplicity."""

from __future__ import annotations

import pytest

from fulltune.plan import hardware, search

GPU = hardware.gpu("A10G")


def choice(deepspeed="zero2_7b", seconds=1.0, share=0.7, passes=1):
    return search.Choice(
        deepspeed=deepspeed,
        workers=16,
        micro_batch_tokens=4096,
        micro_batches=passes,
        gradient_checkpointing=True,
        step_seconds=seconds,
        gpu_bytes=int(share * GPU.memory),
        host_bytes=0,
    )


@pytest.mark.parametrize(
    ("wanted", "other"),
    [
        (choice("zero3_7b", seconds=1.04), choice("zero2_7b", share=0.99)),  # room is worth what no plan can tell
        (choice("zero2_7b", seconds=1.0, share=0.99), choice("zero3_7b", seconds=1.06)),  # but no more than that
        (choice("zero2_7b", share=0.89), choice("zero3_7b", share=0.4)),  # both leave room: the one that moves least
        (choice("zero3_7b", share=0.95), choice("zero3_offload_7b", share=0.97)),  # neither does
        (choice(passes=1, share=0.8), choice(passes=2, share=0.6)),
        (choice(share=0.6), choice(share=0.8)),
        (choice("zero3_7b", seconds=1.04), choice("zero3_hpz_7b", seconds=1.0)),
        (choice("zero3_hpz_7b", share=0.8), choice("zero2_7b", share=0.99)),
        (choice("zero3_hpz_7b", seconds=1.0), choice("zero3_7b", seconds=1.06)),
    ],
)
def test_the_better_of_two(wanted, other):
    assert search.preferred([wanted, other], GPU) == wanted
    assert search.preferred([other, wanted], GPU) == wanted


def test_nothing_fits():
    assert search.preferred([], GPU) is None
