"""Keeps the chatter of libraries off the user's screen: progress bars of single files, advice about each other.

What fulltune has to say goes through `say`; warnings of a library that matter to a user become messages of our own.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


def libraries() -> None:
    """Silences what is said at import and while files are read; errors stay."""
    # the level that is set first survives: Ray and DeepSpeed set theirs only on loggers of their own making
    for name in ("ray._private.authentication.authentication_token_setup", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def transformers() -> None:
    """No bars for weights that load in a second, no advice on generation flags. Imports transformers."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Swallows what a library prints inside the block; an exception carries its own message."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
