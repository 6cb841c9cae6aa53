"""The throughput model against published figures: fits one efficiency per GPU and interconnect, and tests the rest.

    python -m benchmarks.fit_throughput [--rows]

Prints constants that differ from those in `fulltune.plan.throughput`, the errors on the test half by pair, the rows
that take no part and why, and the FLOP accounting against every row that prints TFLOP/s or MFU. `--rows` lists every
prediction.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from statistics import median

from fulltune.plan import hardware, published, throughput
from fulltune.plan.published import Row

PEAK_FP8 = 2  # times the bf16 peak


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


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="list every prediction")
    show_rows = parser.parse_args().rows
    fitted = throughput.fit(published.fitting_rows())
    differing = {pair: value for pair, value in fitted.items() if throughput.EFFICIENCY.get(pair) != value}
    print(f"constants that differ from throughput.EFFICIENCY: {differing or 'none'}\n")
    print(f"{errors_by_pair()}\n\n{exclusions()}\n\n{accounting()}")
    if show_rows:
        print(f"\ntest half\n\n{predictions(published.test_rows())}")
        print(f"\nfitting half\n\n{predictions(published.fitting_rows())}")


if __name__ == "__main__":
    main()
