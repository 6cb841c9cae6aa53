"""`fulltune submit`: a recipe becomes a Ray job.

Uploads only what the job imports (a few hundred kilobytes; Ray's limit is 100 MiB), follows the log, and returns the
job's own exit code, which `ray job submit` itself hides behind 1.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks.base import UserError

PACKAGES = ("ray_jobs", "evaluation", "fulltune", "tasks", "deepspeed_configs")
ROOT = Path(__file__).resolve().parent.parent


def submit(
    recipe: str,
    overrides: Sequence[str],
    *,
    address: str,
    wait: bool,
    options: Sequence[str] = (),
    say: Callable[[str], None],
) -> int:
    """Starts the job; without `wait` prints its id and returns 0.

    Args:
        options: of the job's own command: --force, and what its plan shall take the nodes for.

    Raises:
        UserError: no cluster at the address, or one that does not let us in.
    """
    from ray.job_submission import JobSubmissionClient

    with tempfile.TemporaryDirectory() as folder:
        upload = Path(folder)
        sent = stage(upload, recipe)
        entry = shlex.join(["python", "-m", "ray_jobs.train", sent, *overrides, *options])
        try:
            client = JobSubmissionClient(address)
            job = client.submit_job(entrypoint=entry, runtime_env={"working_dir": str(upload)})
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                got=f"{address}: {str(error).splitlines()[0]}",
                wanted="the dashboard address of a running cluster that accepts this access token",
                fix="check the address, and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH on this side",
            ) from None
    say(f"job {job}: {entry}")
    if not wait:
        print(job)
        return 0
    asyncio.run(_follow(client, job))
    details = client.get_job_info(job)
    say(f"job {job}: {details.status}")
    return _exit_code(details)


def stage(upload: Path, recipe: str) -> str:
    """Copies the packages, and a recipe file of the user's, into the upload folder; returns the recipe's name there."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, upload / package, ignore=skip)
    if not recipe.endswith((".yaml", ".yml")):
        return recipe
    shutil.copy(recipe, upload / Path(recipe).name)
    return Path(recipe).name


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        sys.stdout.write(text)
        sys.stdout.flush()


def _exit_code(details: Any) -> int:
    if details.status == "SUCCEEDED":
        return 0
    return int(details.driver_exit_code or 1)
