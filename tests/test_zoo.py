"""The published models: where their files are, and how they come there."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from cn_clip import zoo
from cn_clip.checkpoint import write_weights
from cn_clip.clip import load_from_name
from cn_clip.config import model_config
from cn_clip.encoder import Encoder
from cn_clip.errors import MissingExtra, UserError
from cn_clip.tokenizer import default_tokenizer
from tiny import VIT, tiny_model, write_json

FILE = "/OFA-Sys/chinese-clip-rn50/resolve/main/clip_cn_rn50.pt"
FETCH = """
import sys
from cn_clip.errors import UserError
from cn_clip.zoo import weights_file
try:
    print(weights_file("RN50", sys.argv[1]))
except UserError as error:
    sys.exit(f"cn-clip: error: {error}")
"""


class Hub(ThreadingHTTPServer):
    """A hub with one file, speaking as much of Hugging Face's protocol as a download needs."""

    def __init__(self, content: bytes, cut_at: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cut_at = cut_at
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        if self.path != FILE:
            self.send_error(404)
            return
        content = self.server.content
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: self.server.cut_at])

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    torch.save({"state_dict": {"logit_scale": torch.tensor(4.5)}}, tmp_path / "published.pt")
    return (tmp_path / "published.pt").read_bytes()


@pytest.fixture
def serve() -> Iterator[type[Hub]]:
    """Starts hubs, and stops them at the end."""
    started: list[Hub] = []

    class Started(Hub):
        def __init__(self, content: bytes, cut_at: int | None = None) -> None:
            super().__init__(content, cut_at)
            threading.Thread(target=self.serve_forever, daemon=True).start()
            started.append(self)

    yield Started
    for hub in started:
        hub.shutdown()
        hub.server_close()


def fetch(root: Path, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its address when it is imported."""
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", FETCH, str(root)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_download_lands_in_the_folder_and_is_not_repeated(
    weights: bytes, serve: type[Hub], tmp_path: Path
) -> None:
    hub, root = serve(weights), tmp_path / "root"
    for _ in range(2):
        done = fetch(root, hub.url, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(root / "clip_cn_rn50.pt")
    assert (root / "clip_cn_rn50.pt").read_bytes() == weights
    assert hub.seen.count(f"GET {FILE}") == 1
    assert torch.load(root / "clip_cn_rn50.pt", weights_only=True)["state_dict"]["logit_scale"] == 4.5


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_offline_one_line_names_the_file_and_its_place(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert_explained(fetch(root, closed_port(), tmp_path / "home"), root)


def test_a_hub_without_the_file(weights: bytes, serve: type[Hub], tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert_explained(fetch(root, f"{serve(weights).url}/mirror", tmp_path / "home"), root)


def test_a_connection_that_breaks_leaves_no_half_file(weights: bytes, serve: type[Hub], tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert_explained(fetch(root, serve(weights, cut_at=len(weights) // 2).url, tmp_path / "home"), root)


def assert_explained(done: subprocess.CompletedProcess[str], root: Path) -> None:
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("cn-clip: error:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("cn-clip: error: cannot download RN50 (")
    place = f"get clip_cn_rn50.pt from OFA-Sys/chinese-clip-rn50 on another machine and put it at {root}"
    assert f"{place}/clip_cn_rn50.pt" in lines[0]
    assert not (root / "clip_cn_rn50.pt").exists()


# Without any network: a request would need one


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_file_that_is_there_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "clip_cn_vit-b-16.pt").touch()
    assert zoo.weights_file("ViT-B-16", str(tmp_path)) == tmp_path / "clip_cn_vit-b-16.pt"
    assert zoo.weights_file("ViT-B-16", str(tmp_path), use_modelscope=True).is_file()


@pytest.mark.usefixtures("no_network")
def test_the_default_folder_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "clip_cn_rn50.pt").touch()
    assert zoo.weights_file("RN50") == tmp_path / ".cache" / "clip" / "clip_cn_rn50.pt"


@pytest.mark.usefixtures("no_network")
def test_what_cannot_be_downloaded_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model ViT-X: there are ViT-B-16, ViT-L-14, ViT-L-14-336"):
        zoo.weights_file("ViT-X", str(tmp_path))
    (tmp_path / "clip_cn_rn50.pt").mkdir()
    with pytest.raises(UserError, match=r"clip_cn_rn50.pt: exists and is not a file; move it away"):
        zoo.weights_file("RN50", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot download RN50 \(.*File exists.*put it at"):
        zoo.weights_file("RN50", str(tmp_path / "file"))


@pytest.mark.usefixtures("no_network")
def test_without_modelscope_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if it were not installed
    with pytest.raises(MissingExtra) as caught:
        zoo.weights_file("RN50", str(tmp_path), use_modelscope=True)
    expected = 'downloading from ModelScope needs modelscope: pip install "chinese-clip[modelscope]"'
    assert str(caught.value) == expected


def test_the_published_models() -> None:
    assert zoo.available_models() == [*zoo.MODELS, "emoji-tiny"]
    for name, model in zoo.MODELS.items():
        assert model.config == model_config(name, model.text)
    assert zoo.MODELS["ViT-H-14"].text == "RoBERTa-wwm-ext-large-chinese"
    assert zoo.MODELS["ViT-L-14-336"].config.vision.image_resolution == 336


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the bundled model's file belongs, in a package whose assets are another folder."""
    default_tokenizer()  # its vocabulary is an asset as well: read it while it is there
    monkeypatch.setattr(zoo.resources, "files", lambda package: tmp_path / "package")
    (tmp_path / "package" / "assets").mkdir(parents=True)
    return tmp_path / "package" / "assets" / "emoji-tiny.safetensors"


@pytest.mark.usefixtures("no_network")
def test_the_bundled_model_needs_no_network_and_no_folder(bundled: Path) -> None:
    model = tiny_model()
    write_weights(bundled, model.state_dict(), model.config, torch.float16)
    loaded, transform = load_from_name("emoji-tiny", "cpu", download_root="/nowhere")
    assert loaded.config == model.config
    assert transform.size == model.config.vision.image_resolution
    assert next(loaded.parameters()).dtype == torch.float32
    encoder = Encoder.load("emoji-tiny", device="cpu")
    assert encoder.encode_texts(["猫"]).shape == (1, model.config.vision.embed_dim)


@pytest.mark.usefixtures("no_network")
def test_a_bundled_model_whose_file_is_missing(bundled: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_from_name("emoji-tiny", "cpu")
    said = "the weights of emoji-tiny are missing from this installation: install it again"
    assert str(caught.value) == f"{bundled}: {said}"


def test_an_architecture_file_is_no_model_name(tmp_path: Path) -> None:
    (path,) = write_json(tmp_path, vit=VIT)
    with pytest.raises(UserError, match="no model"):
        zoo.weights_file(path)
