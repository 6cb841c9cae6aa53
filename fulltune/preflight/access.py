"""Keys and far places: is the hub token there that a gated model asks for, and does the object store take a file."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from fulltune import mirror
from fulltune.config import RunConfig
from fulltune.preflight.check import Check, judged
from tasks.base import UserError

# organisations whose every model is behind a licence to accept: known without asking the hub
GATED = ("meta-llama/",)


def check_hub_token(config: RunConfig) -> Check | None:
    """The token of a gated hub id, and that it opens this one; None where no hub is asked (a folder, random weights).

    A hub that cannot be reached is left to the check of the model: files may be in its cache.
    """
    name = config.model.name_or_path
    if not name or Path(name).expanduser().exists():
        return None
    from huggingface_hub import get_token

    token = bool(get_token())
    answer = _ask(name)
    denied = answer in ("gated", "unknown") or (answer == "unreachable" and not token and name.startswith(GATED))
    if denied and _cached(name, config.model.revision):
        denied, answer = False, "in the cache"
    return judged(
        "hub token",
        ok=not denied,
        got=f"model {name}: {'a token is' if token else 'no token is'} set; the hub says: {answer}",
        wanted="a token whose account has accepted the model's licence" if denied else "a model that may be read",
        fix="accept the licence on the model's page, then export HF_TOKEN=... where the command runs (a job: in its "
        "runtime_env), or point model.name_or_path at a folder",
    )


def _ask(name: str) -> str:
    """What the hub says of a model: open, gated, unknown (which is also what it says of private ones), unreachable."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "unreachable"
    try:
        HfApi(endpoint=os.environ.get("HF_ENDPOINT")).auth_check(name)
    except GatedRepoError:
        return "gated"
    except (RepositoryNotFoundError, HFValidationError):
        return "unknown"
    except Exception:  # of whatever library carries the request; the next check says why a model cannot be had
        return "unreachable"
    return "open"


def _cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        return False


def check_object_store(config: RunConfig) -> Check | None:
    """A small file goes to `checkpoint.upload_to`, comes back and is deleted; None where the run has no such place."""
    uri = config.checkpoint.upload_to
    if uri is None:
        return None
    error = _store_and_fetch(uri, str(config.ray.name))
    return judged(
        "object store",
        ok=error is None,
        got=f"{uri}: {error}" if error else f"{uri} takes a file and gives it back",
        wanted="a prefix that may be written, read and deleted from",
        fix="check the address and the credentials in the environment of the workers (for S3 AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or an instance role)",
    )


def _store_and_fetch(uri: str, run: str) -> str | None:
    """None, or what went wrong."""
    content = uuid.uuid4().hex.encode()
    try:
        store = mirror.connect(uri, run)
        store.store.create_dir(store.base, recursive=True)
        path = f"{store.base}/preflight-{content.decode()}"
        with store.store.open_output_stream(path) as stream:
            stream.write(content)
        with store.store.open_input_stream(path) as stream:
            came = stream.read()
        store.store.delete_file(path)
    except UserError as error:
        return error.got
    except OSError as error:
        return str(error).splitlines()[0]
    return None if came == content else f"{len(came)} bytes came back, of {len(content)}"
