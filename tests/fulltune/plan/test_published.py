"""The published rows: readable, sourced, FLOPs as they print them, halves that were decided before any fit."""

from __future__ import annotations

import pytest

from benchmarks.fit_throughput import flops_error
from fulltune.plan import published


def test_every_row_has_a_source_and_an_own_id():
    rows = published.rows()
    assert len({row.id for row in rows}) == len(rows) > 150
    assert all(row.source and row.tokens_per_s > 0 for row in rows)


def test_parameters_of_the_published_models_are_those_that_the_source_prints():
    printed = {
        ("1b", 2048): 1_315_950_592,
        ("3b", 2048): 2_651_837_440,
        ("7b", 65536): 6_918_905_856,
        ("13b", 4096): 12_864_440_320,
        ("30b", 8192): 30_019_254_272,
        ("70b", 2048): 64_862_437_376,
    }
    for (name, length), count in printed.items():
        assert published.model_shape(f"mpt-{name}", length).parameters == count
    llama = {"llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192}
    for name, count in llama.items():
        assert published.model_shape(name, 4096).parameters == count


def test_flops_are_within_one_percent_of_what_the_sources_print():
    """All but IBM's, whose tokens/s and MFU are rounded and whose larger models it counts in another way."""
    errors = {row.id: error for row in published.rows() if (error := flops_error(row)) is not None}
    off = {name for name, error in errors.items() if abs(error) > 0.01}
    assert len(errors) - len(off) >= 150
    assert all(name.startswith("ibm-") for name in off)
    llama_2 = [e for name, e in errors.items() if name.startswith(("nemo", "titan")) and "llama2" in name]
    assert len(llama_2) >= 10
    assert max(map(abs, llama_2)) < 0.01


def test_the_halves_are_disjoint_cover_everything_and_depend_on_ids_only():
    fitting, tested = published.fitting_rows(), published.test_rows()
    included = [row for row in published.rows() if published.excluded(row) is None]
    assert {r.id for r in fitting} | {r.id for r in tested} == {r.id for r in included}
    assert not {r.id for r in fitting} & {r.id for r in tested}
    assert 0 <= len(fitting) - len(tested) <= len({(r.pair, r.collected) for r in included})


def test_rows_that_come_later_leave_the_earlier_halves_as_they_were(monkeypatch):
    first = min(row.collected for row in published.rows())
    before = [{r.id for r in half() if r.collected == first} for half in (published.fitting_rows, published.test_rows)]
    earlier = tuple(row for row in published.rows() if row.collected == first)
    monkeypatch.setattr(published, "rows", lambda: earlier)
    assert [{r.id for r in half()} for half in (published.fitting_rows, published.test_rows)] == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("anyscale-a10g-llama2-7b", "offloads to the host"),
        ("nemo-h100-sft-llama2-7b", "fp8"),
        ("automodel-h100-llama3-70b", "tensor, pipeline or sequence parallelism"),
        ("hf-a100-llama2-70b", "rate between nodes not printed"),
        ("titan-a100-llama2-13b-none", None),
    ],
)
def test_rows_are_left_out_for_a_reason(name, reason):
    row = next(row for row in published.rows() if row.id == name)
    assert published.excluded(row) == reason
