"""The throughput model against published figures: fits one efficiency per GPU and interconnect, and tests the rest.

    python -m benchmarks.fit_throughput [--rows] [--terms] [--estimators]

Prints constants that differ from those in `fulltune.plan.throughput`, the errors on the test half by pair, the rows
that take no part and why, and the FLOP accounting against every row that prints TFLOP/s or MFU. `--rows` lists every
prediction; `--terms` fits the model without each of its finer terms, and with each of them alone; `--estimators` fits
the constants in other ways, and predicts the rows that were collected last by constants fitted without them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import attrgetter
from statistics import fmean, median
from unittest import mock

from fulltune.plan import hardware, published, rates, throughput
from fulltune.plan.collectives import Traffic
from fulltune.plan.published import Row

# terms of the model beyond products, memory traffic, hidden communication and a fused update
TERMS = {
    "A": "gradients summed in float32 where the source does so",
    "B": "gathers of the backward pass exposed under backward prefetch POST",
    "C": "AdamW and clipping as separate kernels",
    "D": "attention on Hopper at two thirds of the products' rate",
    "E": "first gather and last scatter exposed",
    "F": "collectives at the rates that nccl-tests measured, counted as it counts them",
    "G": "memory at the rates that BabelStream measured",
    "H": "time round the ring that does not depend on size",
}
PEAK_FP8 = 2  # times the bf16 peak
# what decides a constant, of ratios of predicted to published tokens/s: it is lowered while this is positive
ESTIMATORS: dict[str, Callable[[Sequence[float]], float]] = {
    "least squares of logarithms: the model's": throughput.mean_log,
    "median": lambda ratios: median(ratios) - 1,
    "least squares of relative errors": lambda ratios: fmean(ratio * (ratio - 1) for ratio in ratios),
    "smallest worst error": lambda ratios: max(ratios) + min(ratios) - 2,
}


def flops_error(row: Row) -> float | None:
    """Relative difference of our FLOPs, under the row's own convention, from what it prints; None if it prints none."""
    if row.mfu is None and row.tflops is None:
        return None
    tflops = published.printed_flops(row) / row.sequence_length * row.tokens_per_s / 1e12
    if row.tflops is not None:
        return tflops / row.tflops - 1
    assert row.mfu is not None
    peak = hardware.gpu(row.gpu).bf16_flops / 1e12 * (PEAK_FP8 if row.dtype == "fp8" else 1)
    return tflops / (row.mfu / 100 * peak) - 1


def accounting() -> str:
    """The FLOP check as Markdown: a line per source, and every row that is off by more than 1 %."""
    errors = [(row, error) for row in published.rows() if (error := flops_error(row)) is not None]
    lines = ["| source | rows | within 1 % | largest difference |", "|---|---|---|---|"]
    for source in sorted({row.source for row, _ in errors}):
        own = [error for row, error in errors if row.source == source]
        within = sum(abs(error) <= 0.01 for error in own)
        lines.append(f"| {source} | {len(own)} | {within} | {max(own, key=abs):+.2%} |")
    return "\n".join(lines)


def errors_by_pair() -> str:
    """Constants and errors by pair as Markdown."""
    lines = ["| GPU | interconnect | efficiency | rows fitted | rows tested | median error | worst error |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    tested = published.test_rows()
    for pair, rows in _by_pair(published.fitting_rows()).items():
        own = [row for row in tested if row.pair == pair]
        figures = summary(own) if own else "- | -"
        lines.append(
            f"| {pair[0]} | {pair[1]} | {throughput.EFFICIENCY[pair]:.3f} | {len(rows)} | {len(own)} | {figures} |"
        )
    lines.append(f"| all | | | {len(published.fitting_rows())} | {len(tested)} | {summary(tested)} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """Median and worst absolute error: "4.2 % | 12.0 %"."""
    errors = [abs(throughput.error(row)) for row in rows]
    return f"{median(errors):.1%} | {max(errors):.1%}".replace("%", " %")


def _by_pair(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    return {pair: [row for row in rows if row.pair == pair] for pair in sorted({row.pair for row in rows})}


def exclusions() -> str:
    """Rows that take no part, by reason, as Markdown."""
    reasons = Counter(reason for row in published.rows() if (reason := published.excluded(row)) is not None)
    lines = ["| rows | left out because |", "|---|---|"]
    return "\n".join(lines + [f"| {count} | {reason} |" for reason, count in reasons.most_common()])


def predictions(rows: Sequence[Row]) -> str:
    """Every row's published and predicted tokens/s as Markdown, the worst first."""
    lines = ["| row | published tokens/s | predicted | error |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: -abs(throughput.error(row))):
        predicted = throughput.predicted_tokens_per_s(row, throughput.EFFICIENCY[row.pair])
        lines.append(f"| {row.id} | {row.tokens_per_s:,.0f} | {predicted:,.0f} | {throughput.error(row):+.1%} |")
    return "\n".join(lines)


def terms() -> str:
    """Both halves under a fit with none of TERMS, each alone, all but each, the first five, and all."""
    lines = ["| terms | fitted: median, mean, worst error | tested: median, mean, worst error |", "|---|---|---|"]
    every = "".join(TERMS)
    for chosen in ("", *every, *(every.replace(term, "") for term in every), "ABCDE", every):
        halves = [_three(rows) for rows in _errors(chosen)]
        lines.append(f"| {chosen or 'none'} | {' | '.join(halves)} |")
    return "\n".join(lines)


def estimators() -> str:
    """Errors of both halves under each of ESTIMATORS, and of the rows collected last under a fit to earlier ones."""
    last = max(row.collected for row in published.rows())
    earlier = [row for row in published.fitting_rows() if row.collected < last]
    included = (row for row in published.rows() if published.excluded(row) is None)
    later = [row for row in included if row.collected == last]
    lines = [
        "| constants by | fitted: median, mean, worst error | tested: median, mean, worst error "
        f"| {len(later)} rows collected last, fitted without them |",
        "|---|---|---|---|",
    ]
    for name, centre in ESTIMATORS.items():
        constants = throughput.fit(published.fitting_rows(), centre)
        cells = [_three(_apart(rows, constants)) for rows in (published.fitting_rows(), published.test_rows())]
        lines.append(f"| {name} | {' | '.join(cells)} | {_three(_apart(later, throughput.fit(earlier, centre)))} |")
    return "\n".join(lines)


def _apart(rows: Sequence[Row], constants: dict[tuple[str, str], float]) -> list[float]:
    """Absolute relative errors under these constants."""
    return [abs(throughput.predicted_tokens_per_s(row, constants[row.pair]) / row.tokens_per_s - 1) for row in rows]


def _three(errors: Sequence[float]) -> str:
    return f"{median(errors):.1%}, {fmean(errors):.1%}, {max(errors):.1%}".replace("%", " %")


def _errors(chosen: Collection[str]) -> list[list[float]]:
    """Absolute errors of the fitting and of the test half, fitted anew with these terms only."""
    with _only(chosen) as changed:
        halves = [[changed(row) for row in rows] for rows in (published.fitting_rows(), published.test_rows())]
        constants = throughput.fit(halves[0])
        return [_apart(rows, constants) for rows in halves]


@contextmanager
def _only(chosen: Collection[str]) -> Iterator[Callable[[Row], Row]]:
    """Inside, the model has these terms only; hands out what the rows have to be passed through."""
    kept = {"reduce_dtype": "A", "backward_prefetch": "B"}
    blank = {field: "" for field, term in kept.items() if term not in chosen}
    with ExitStack() as patches:
        if "C" not in chosen:
            patches.enter_context(mock.patch.object(throughput, "UNFUSED_UPDATE_BYTES", throughput.UPDATE_BYTES))
        if "D" not in chosen:
            patches.enter_context(mock.patch.object(throughput, "MMA_SYNC", {}))
        if "E" not in chosen:
            patches.enter_context(mock.patch.object(Traffic, "share", return_value=Traffic()))
        if "F" not in chosen:
            patches.enter_context(mock.patch.object(rates, "NVSWITCH", {}))
            patches.enter_context(mock.patch.object(rates, "network", float))
            patches.enter_context(mock.patch.object(Traffic, "between_nodes", _once_into_a_node))
        if "G" not in chosen:
            patches.enter_context(mock.patch.object(rates, "memory", attrgetter("memory_bandwidth")))
        if "H" not in chosen:
            patches.enter_context(mock.patch.object(rates, "PROTOCOLS", ((0.0, 0.0, 0.0, 1.0),)))
        yield lambda row: replace(row, **blank)  # type: ignore[arg-type]


def _once_into_a_node(traffic: Traffic, workers: int, nodes: int) -> float:
    """What would enter a node if nothing did that it has."""
    return traffic.sent(nodes)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="list every prediction")
    parser.add_argument("--terms", action="store_true", help="compare the model's terms; takes half a minute")
    parser.add_argument("--estimators", action="store_true", help="compare ways to fit the constants")
    options = parser.parse_args()
    fitted = throughput.fit(published.fitting_rows())
    differing = {pair: value for pair, value in fitted.items() if throughput.EFFICIENCY.get(pair) != value}
    print(f"constants that differ from throughput.EFFICIENCY: {differing or 'none'}\n")
    print(f"{errors_by_pair()}\n\n{exclusions()}\n\n{accounting()}")
    if options.terms:
        print("", *(f"{term}: {what}" for term, what in TERMS.items()), "", terms(), sep="\n")
    if options.estimators:
        print(f"\n{estimators()}")
    if options.rows:
        print(f"\ntest half\n\n{predictions(published.test_rows())}")
        print(f"\nfitting half\n\n{predictions(published.fitting_rows())}")


if __name__ == "__main__":
    main()
