"""Worker 0's notes on a run: every event and every validation into metrics.jsonl, faulty steps into files of their own.

Stands between the training loop, which yields events, and the log; `fulltune.session` owns one on worker 0 only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune import guards
from fulltune.metrics import MetricsLog
from fulltune.train import Event, NonFinite, Skipped, Spiked, StepDone, Validated
from fulltune.validation import Watch


@dataclass(frozen=True, slots=True)
class Journal:
    """What is written down, and for whom.

    Attributes:
        watch: of validations beside training; None where there are none.
        tell: prints a line for the user.
    """

    run: Path
    log: MetricsLog
    watch: Watch | None
    tell: Callable[[str], None]

    def note(self, event: Event, examples: Sequence[Mapping[str, Any]]) -> None:
        """One event of the loop, and the validations that have come in meanwhile.

        Args:
            examples: the records of a step that was skipped.
        """
        match event:
            case StepDone():
                self.log.step(event)
                for outcome in self.watch.news() if self.watch is not None else ():
                    self.log.outcome(outcome)
            case Skipped():
                self.log.skipped(event)
                self.fault(event, examples)
            case Spiked():
                self.log.spiked(event)
            case Validated():
                self.log.validated(event)

    def fault(self, fault: Skipped | NonFinite, examples: Sequence[Mapping[str, Any]]) -> None:
        """Which records a step held whose loss or gradient is not finite."""
        file = guards.write_fault(self.run, fault, examples)
        self.tell(f"{fault.what} {fault.value} at step {fault.step}; its records are listed in {file}")
