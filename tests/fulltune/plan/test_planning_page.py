"""docs/planning_evidence.md: its tables are what the code computes, what it says of the study is true of them."""

from __future__ import annotations

from benchmarks import planning_page
from fulltune.plan import hardware


def test_the_page_is_up_to_date():
    text = planning_page.PAGE.read_text(encoding="utf-8")
    assert planning_page.rendered(text) == text, "run python -m benchmarks.planning_page"


def test_the_study_offloads_models_that_fit():
    rows = planning_page.study().splitlines()[2:]
    assert "6.7 GB | fits" in rows[0]
    assert "13.0 GB | fits" in rows[1]
    assert "34.5 GB | does not fit" in rows[2]


def test_plans_cover_every_model_and_cluster_and_only_what_fits():
    lines = planning_page.plans().splitlines()[2:]
    assert len(lines) == 12
    none = [line for line in lines if "**none**" in line]
    assert [line[:20] for line in none] == ["| 70B | 16x A10G | *", "| 70B | 8x A100-80 |"]
    offloaded = [line for line in lines if "offload" in line]
    assert all(line.startswith("| 70B") for line in offloaded)


def test_a_choice_that_does_not_fit_is_not_offered():
    gpu = hardware.gpu("A10G")
    tried = list(planning_page.options("13B", gpu, 16))
    fitting = {option.choice.deepspeed for option in tried if planning_page.fitting(option, gpu)}
    assert fitting >= {"zero3_13b", "zero3_hpz_13b", "zero3_offload_13b"}
    assert "zero1_13b" not in fitting
    assert {option.setup.sharding.stage for option in tried} == {1, 2, 3}
    on_one_node = {option.choice.deepspeed for option in planning_page.options("7B", gpu, 8)}
    assert "zero3_hpz_7b" not in on_one_node
