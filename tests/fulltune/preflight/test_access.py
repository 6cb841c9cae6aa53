"""Hub tokens against a hub that answers like the real one, and an object store that is a folder."""

from __future__ import annotations

import http.server
import threading

import pytest

from fulltune import config
from fulltune.preflight import access

MODEL = "meta-llama/Llama-2-7b-hf"


def run(name, **checkpoint):
    tree = {"task": "viggo", "model": {"name_or_path": str(name)}, "ray": {"name": "r"}, "checkpoint": checkpoint}
    return config.resolve(tree, origin="test")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No token, no cache, no network."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Hub(http.server.BaseHTTPRequestHandler):
    """Gated models want a token, as the hub says it: status and X-Error-Code."""

    def do_GET(self):
        gated = "gated" in self.path and self.headers.get("Authorization") != "Bearer good"
        private = "private" in self.path
        self.send_response(401 if gated or private else 200)
        if gated or private:
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    # huggingface_hub reads these when it is imported
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_folder_and_random_weights_ask_no_hub(tmp_path):
    assert access.check_hub_token(run(tmp_path)) is None
    tree = {"task": "viggo", "model": {"init": "random", "config": {"hidden_size": 8}, "tokenizer": {}}, "ray": {}}
    assert access.check_hub_token(config.resolve(tree, origin="test")) is None


def test_llama_without_a_token_is_a_no_go_even_without_a_network():
    check = access.check_hub_token(run(MODEL))
    assert (check.ok, check.name) == (False, "hub token")
    assert "no token is set" in check.got
    assert "HF_TOKEN" in check.fix


def test_llama_in_the_cache_needs_no_token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "/somewhere/config.json")
    assert access.check_hub_token(run(MODEL)).ok


def test_an_open_model_and_no_network_is_left_to_the_next_check():
    assert access.check_hub_token(run("someone/open-model")).ok


@pytest.mark.parametrize(("name", "says"), [("some/gated-model", "gated"), ("some/private-model", "unknown")])
def test_the_hub_decides_where_it_answers(hub, name, says):
    check = access.check_hub_token(run(name))
    assert not check.ok
    assert check.got.endswith(f"the hub says: {says}")
    assert access.check_hub_token(run("some/open-model")).got.endswith("the hub says: open")


def test_a_store_that_takes_a_file(tmp_path):
    assert access.check_object_store(run(MODEL)) is None
    check = access.check_object_store(run(MODEL, upload_to=f"file://{tmp_path}/store"))
    assert check.ok
    assert not [file for file in (tmp_path / "store").rglob("*") if file.is_file()]


def test_a_store_that_takes_none(tmp_path):
    (tmp_path / "file").write_text("")
    for uri in (f"file://{tmp_path}/file/store", "nothing://bucket/prefix"):
        check = access.check_object_store(run(MODEL, upload_to=uri))
        assert not check.ok
        assert uri in check.got
