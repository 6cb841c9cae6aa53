"""Peak memory of loss and backward, all logits at once against a chunk at a time, measured on this machine.

    python -m benchmarks.loss_memory [--vocabulary 32000] [--tokens 4096] [--hidden 1024]

Every arm is a process of its own. Reported is how far its resident set rose above what it was with the
inputs in place (VmHWM of Linux, reset first): gradients count, the interpreter does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fulltune.loss import LinearCrossEntropy

MIB = 2**20
CHUNKS = (0, 4096, 1024, 256)  # 0: all logits through torch's cross entropy


def peak_bytes() -> int:
    """The highest resident set of this process since `reset`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset() -> None:
    """Lets the highest resident set start over from the present one."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(chunk: int, vocabulary: int, tokens: int, width: int) -> dict[str, float]:
    """Rise of the resident set and time of one loss with its gradients, in float32."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)  # (K, H)
    weight = (torch.randn(vocabulary, width) * 0.02).requires_grad_()  # (V, H)
    targets = torch.randint(vocabulary, (tokens,))
    torch.mm(hidden[:8].detach(), weight[:8].detach().T)  # the kernels' own buffers are not the loss's
    reset()
    before, started = peak_bytes(), time.perf_counter()
    if chunk:
        loss = LinearCrossEntropy.apply(hidden, weight, targets, chunk, True)
    else:
        loss = cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    (loss / tokens).backward()  # type: ignore[no-untyped-call]
    return {"bytes": peak_bytes() - before, "seconds": time.perf_counter() - started, "loss": float(loss) / tokens}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=4096, help="supervised tokens of a micro-batch")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the model")
    parser.add_argument("--chunk", type=int, help="measure this arm only, and print JSON")
    args = parser.parse_args()
    if args.chunk is not None:
        print(json.dumps(measure(args.chunk, args.vocabulary, args.tokens, args.hidden)))
        return
    print(f"vocabulary {args.vocabulary:,}, {args.tokens:,} supervised tokens, width {args.hidden:,}, float32")
    print("| logits at a time | peak above the inputs | of it the head's gradient | time | loss |")
    print("|---|---|---|---|---|")
    gradient = args.vocabulary * args.hidden * 4 / MIB
    for chunk in CHUNKS:
        command = [sys.executable, "-m", "benchmarks.loss_memory", *sys.argv[1:], "--chunk", str(chunk)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        name = f"{chunk:,}" if chunk else "all (plain)"
        print(
            f"| {name} | {found['bytes'] / MIB:,.0f} MiB | {gradient:,.0f} MiB | {found['seconds']:.1f} s "
            f"| {found['loss']:.6f} |"
        )


if __name__ == "__main__":
    main()
