"""A growing predictions file: its end is in the order of the records, whatever order the answers came in."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation import prediction_file


def test_the_file_ends_in_the_order_of_the_records_and_keeps_every_key(tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    lines = [{"id": name, "completion": name.upper(), "finish_reason": "stop", "latency_s": 0.5} for name in "cab"]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prediction_file.finish(out, ["a", "b", "c"])
    assert [json.loads(line) for line in out.read_text().splitlines()] == sorted(lines, key=lambda line: line["id"])
