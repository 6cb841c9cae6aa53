"""Worker processes of one machine: what starts the ranks of benchmarks and tests, and how a rank begins and ends.

`run` starts a command once per rank and collects what each left behind; `serve` is the body of such a command. No Ray.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LOG_TAIL = 3000  # characters of each rank's output in the message of a failure


def run(
    command: Sequence[str], workers: int, environment: Mapping[str, str], results: Path, *, timeout_s: float
) -> list[Any]:
    """What every rank found, in their order; none outlives the call.

    Args:
        environment: on top of this process's own and of what torch.distributed reads.
        results: existing folder for `<rank>.json` (`serve`) and `<rank>.log`.
        timeout_s: that each rank has at most, counted from the end of the one before it.

    Raises:
        RuntimeError: a rank failed; the message has the end of every rank's output.
        subprocess.TimeoutExpired: a rank did not end.
    """
    common = os.environ | environment | {"WORLD_SIZE": str(workers)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    logs = [results / f"{rank}.log" for rank in range(workers)]
    ranks = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [rank.wait(timeout=timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if any(codes):
        tails = "\n".join(log.read_text()[-LOG_TAIL:] for log in logs)
        raise RuntimeError(f"ranks ended with exit codes {codes}\n{tails}")
    return [json.loads((results / f"{rank}.json").read_text()) for rank in range(workers)]


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def serve(case: Callable[[Any], Any], results: Path, *, backend: str = "gloo") -> None:
    """One rank from its first collective to its last: calls `case` with its `comm.Workers`, writes what that found."""
    import torch.distributed as dist

    from fulltune import comm
    from fulltune.engine import prebuild

    dist.init_process_group(backend)
    if backend == "gloo":
        prebuild.attach()
    workers = comm.Workers(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    found = case(workers)
    (results / f"{workers.rank}.json").write_text(json.dumps(found))
    workers.barrier()
    dist.destroy_process_group()
