"""Measured rates: below the data sheet's wherever there are both, and as the page of sources has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fulltune.plan import hardware, published, rates, throughput

PAGE = Path(__file__).parents[3] / "docs" / "planning_evidence.md"


@pytest.mark.parametrize("gpu", hardware.GPUS, ids=lambda gpu: gpu.name)
def test_nothing_exceeds_its_data_sheet(gpu):
    assert rates.memory(gpu) < gpu.memory_bandwidth
    assert rates.network(gpu.network_bandwidth) < gpu.network_bandwidth
    assert rates.link(gpu) <= gpu.link_bandwidth


def test_every_network_of_the_published_rows_was_measured():
    links = [link for link in published.LINKS if link != "nvlink"]
    assert {throughput.node_rate(link) for link in links} == set(rates.NETWORK)
    assert {row.gpu for row in published.rows() if published.excluded(row) is None} <= set(rates.NVSWITCH)


def test_other_networks_take_the_median_share():
    assert rates.network(10e9) == pytest.approx(0.925 * 10e9)


def test_the_page_has_the_same_figures():
    section = PAGE.read_text(encoding="utf-8").split("### Rates that were measured")[1].split("### Throughput")[0]
    table = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("| ")]
    taken = {float(row[2].replace(",", "")): float(row[4]) for row in table if re.fullmatch(r"[\d.]+", row[4])}
    links = {gpu.link_bandwidth: rates.link(gpu) for gpu in hardware.GPUS if gpu.name in rates.NVSWITCH}
    used = {line / 1e9: reached / 1e9 for line, reached in (links | rates.NETWORK).items()}
    assert {line: reached for line, reached in taken.items() if line in used} == pytest.approx(used)
    triads = {row[1]: float(row[3].replace(",", "")) for row in table if row[1].startswith("A100-")}
    assert triads == {name: rate / 1e9 for name, rate in rates.MEMORY.items()}


def test_a_short_message_goes_by_the_protocol_of_low_latency():
    short, long = (rates.ring_time(sent, 100e9, gpus=16, nodes=2, rounds=1) for sent in (1e6, 1e9))
    assert short == pytest.approx((14.0 + 14 * 1.9 + 4.0) / 1e6 + 1e6 / 92e9)
    assert long == pytest.approx((8.4 + 14 * 3.4 + 14.0) / 1e6 + 1e9 / 100e9)
