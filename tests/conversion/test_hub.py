"""Repositories: which files are fetched from a hub, once, and what is said without one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cn_clip.conversion.huggingface import save_huggingface
from cn_clip.hub import is_repository
from test_zoo import closed_port
from tiny import tiny_model

# Each request is a name and a folder, or none; each answer is a line.
FETCH = """
import sys
from cn_clip.clip import load_from_name
from cn_clip.errors import UserError
for request in sys.argv[1:]:
    name, root = request.split(":")
    try:
        model, preprocess = load_from_name(name, "cpu", download_root=root or None)
        print(model.config.vision.vision_width, preprocess.size)
    except UserError as error:
        print(error)
"""


class Hub(ThreadingHTTPServer):
    """Serves the files of one folder as the repository someone/tiny."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """As much of the protocol as a download needs."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        file = self.path.removeprefix("/someone/tiny/resolve/main/")
        there = file != self.path or self.path.startswith("/someone/empty/")
        path = self.server.folder / file
        if file == self.path or not path.is_file():
            self.send_response(404)
            # The hub's way to say that the repository is there, and the file is not.
            self.send_header("X-Error-Code", "EntryNotFound" if there else "RepoNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.fetched.append(file)
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    model = tiny_model()
    save_huggingface(tmp_path / "repository", model.state_dict(), model.config, max_shard_size=1_000_000)
    (tmp_path / "repository" / "pytorch_model.bin").write_bytes(b"never asked for")
    started = Hub(tmp_path / "repository")
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.shutdown()
    started.server_close()


def fetch(endpoint: str, home: Path, *requests: str) -> list[str]:
    """In a process of its own: the hub's client reads its address when it is imported."""
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *requests], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_repository_is_fetched_once_and_then_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    cached, kept = "someone/tiny:", f"someone/tiny:{tmp_path / 'root'}"
    *loaded, missing, empty = fetch(
        hub.url, tmp_path / "home", cached, kept, cached, "nobody/no:", "someone/empty:"
    )
    assert loaded == ["48 32"] * 3
    names = {path.name for path in hub.folder.iterdir()}
    assert {name for name in names if name.startswith("model")} <= set(hub.fetched)
    assert not {"README.md", "pytorch_model.bin"} & set(hub.fetched)
    # Once: the client copies into the folder what it has in its cache.
    assert len(hub.fetched) == len(set(hub.fetched))
    assert (tmp_path / "root" / "someone--tiny" / "config.json").is_file()
    advice = "get its files on another machine and give the path of their folder"
    assert missing.startswith("cannot download nobody/no (")
    assert missing.endswith(advice)
    assert empty.startswith("someone/empty: a repository without config.json and weights (model.safetensors, ")
    offline = fetch(closed_port(), tmp_path / "home", cached, kept, f"someone/tiny:{tmp_path / 'other'}")
    assert offline[:2] == loaded[:2]
    assert offline[2].startswith("cannot download someone/tiny (")
    assert offline[2].endswith(advice)


def test_what_may_be_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_repository("OFA-Sys/chinese-clip-vit-base-patch16")
    for name in ("ViT-B-16", "a/b/c", "/a/b", "", "a b/c"):
        assert not is_repository(name), name
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "epoch1.pt").touch()
    assert not is_repository("logs/epoch1.pt")
