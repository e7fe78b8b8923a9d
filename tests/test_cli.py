"""The command line: verbs, flags, exit statuses, one line for every error, and how little it imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cn_clip import cli
from cn_clip.cli import VERBS, Verb, clean, main
from cn_clip.errors import MissingExtra, UserError

COMMAND = [sys.executable, "-m", "cn_clip"]


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)


def test_the_overview_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        for name, verb in VERBS.items():
            assert f"  {name} " in text
            assert verb.help in text


def test_a_group_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["data"], ["data", "--help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert "data build-lmdb" in text
        assert "extract" not in text


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code in (0, None)
    text = capsys.readouterr().out
    assert text.startswith(f"usage: cn-clip {name}")
    assert "options" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[0] == "cn-clip"


@pytest.mark.parametrize("arguments", [["fly"], ["fly", "--help"], ["data", "fly"], ["--fly"], [""]])
def test_an_unknown_verb_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cn-clip: error: no command ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--fly", "3"], ["--top-k", "ten"], ["--top-k"], ["stray"], []])
def test_wrong_flags_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["topk", *arguments])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# What reaches a verb's function, through tyro


def probe(
    path: Path | None = None,
    top_k: int = 10,
    val_interval: int | None = 5,
    name: str = "default",
    index: str | None = "index",
    fast: bool = False,
    status: int = 0,
) -> int:
    """Shows its arguments.

    Args:
        path: a path.
    """
    SEEN.append({"path": path, "top_k": top_k, "val_interval": val_interval, "name": name})
    SEEN[-1] |= {"index": index, "fast": fast}
    return status


SEEN: list[dict[str, Any]] = []
DEFAULTS = {"path": None, "top_k": 10, "val_interval": 5, "name": "default", "index": "index", "fast": False}


@pytest.fixture
def probe_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setitem(VERBS, "probe it-all", Verb(f"{__name__}:probe", "a probe"))


@pytest.mark.usefixtures("probe_verb")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--top-k", "3"], {"top_k": 3}),
        (["--top_k", "3"], {"top_k": 3}),
        (["--top_k=3"], {"top_k": 3}),
        (["--val-interval", "-1"], {"val_interval": -1}),
        (["--val_interval=-1"], {"val_interval": -1}),
        (["--val-interval", "none"], {"val_interval": None}),
        (["--val-interval=None"], {"val_interval": None}),
        (["--index=", "--fast"], {"fast": True}),
        (["--index", "", "--fast"], {"fast": True}),
        (["--index=a=b"], {"index": "a=b"}),
        (["--index", "none"], {"index": None}),
        (["--name", "皮卡丘 和 猫"], {"name": "皮卡丘 和 猫"}),
        (["--path", "/a b/c"], {"path": Path("/a b/c")}),
    ],
)
def test_flags(arguments: list[str], expected: dict[str, Any]) -> None:
    for verb in (["probe", "it-all"], ["probe", "it_all"]):
        assert main([*verb, *arguments]) == 0
    assert [{**DEFAULTS, **expected}] * 2 == SEEN


@pytest.mark.usefixtures("probe_verb")
def test_a_verbs_own_status_is_the_exit_status() -> None:
    assert main(["probe", "it-all", "--status", "1"]) == 1


def test_clean_leaves_other_arguments_as_they_are() -> None:
    arguments = ["a.jsonl", "b.jsonl", "--k", "1", "5", "--flag", "-", "--", "x="]
    assert clean(arguments) == arguments


# Errors


@pytest.mark.usefixtures("probe_verb")
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a.tsv:3: broken\n  line"), "a.tsv:3: broken line"),
        (
            MissingExtra("timm", "train", "augmentation"),
            'augmentation needs timm: pip install "chinese-clip[train]"',
        ),
        (FileNotFoundError(2, "No such file or directory", "x.tsv"), "x.tsv: No such file or directory"),
        (FileExistsError(17, "File exists", "logs"), "logs: File exists"),
        (IsADirectoryError(21, "Is a directory", "logs"), "logs: Is a directory"),
        (OSError("image file is odd"), "image file is odd"),
    ],
)
def test_an_error_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "load", lambda verb: fail)
    monkeypatch.setattr(cli, "_discard_output", lambda: None)
    assert main(["probe", "it-all"]) == 1
    assert capsys.readouterr().err == f"cn-clip: error: {line}\n"


def test_a_wrong_input_in_a_real_process(tmp_path: Path) -> None:
    done = run("topk", f"--image-feats={tmp_path}/a", f"--text-feats={tmp_path}/b", f"--output={tmp_path}/c")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"cn-clip: error: {tmp_path}/a: No such file or directory\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("probe_verb")
def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "load", lambda verb: fail)
    with pytest.raises(ZeroDivisionError):
        main(["probe", "it-all"])


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    """A reader that waits for a pipe is stopped in the middle of its work; what it was to write is not there."""
    os.mkfifo(tmp_path / "a.jsonl")
    flags = [f"--image-feats={tmp_path}/a.jsonl", f"--text-feats={tmp_path}/b", f"--output={tmp_path}/c"]
    process = subprocess.Popen([*COMMAND, "topk", *flags], stdout=-1, stderr=-1, text=True)
    with open(tmp_path / "a.jsonl", "w") as pipe:  # opens when the other side does: it is at work now
        pipe.write('{"image_id": 1, "feature": [1.0, 0.0]}\n')
        pipe.flush()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert (out, err) == ("", "cn-clip: stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffered output fails when it is flushed, unbuffered output when it is printed."""
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


@pytest.mark.usefixtures("buffering")
def test_a_reader_that_goes_away() -> None:
    process = subprocess.Popen([*COMMAND, "--help"], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


@pytest.mark.usefixtures("buffering")
def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=-1, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("cn-clip: error: ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


# What is imported


HEAVY = {"torch", "torchvision", "faiss", "numpy", "PIL", "lmdb", "orjson", "tokenizers", "tyro", "timm", "tqdm"}
MODULES = "import json, sys; print('MODULES', json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def modules_after(code: str) -> set[str]:
    script = f"{code}\n{MODULES}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.rpartition("MODULES")[2]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    found = modules_after("import cn_clip; from cn_clip import UserError")
    assert "cn_clip" in found
    assert not found & HEAVY


def test_the_overview_imports_nothing_heavy() -> None:
    for arguments in ("['--help']", "['data']", "['fly']", "['--version']"):
        assert not modules_after(f"from cn_clip.cli import main; main({arguments})") & HEAVY


def test_the_api_needs_no_training_or_search_library() -> None:
    found = modules_after("import cn_clip; cn_clip.Encoder; import cn_clip.clip")
    assert {"torch", "PIL"} <= found
    assert not found & {"torchvision", "faiss", "timm", "gradio", "onnxruntime", "lmdb", "transformers"}


def test_public_names() -> None:
    import cn_clip

    assert cn_clip.UserError is UserError
    assert {getattr(cn_clip, name).__name__ for name in cn_clip.__all__} == set(cn_clip.__all__)
    with pytest.raises(AttributeError, match="module 'cn_clip' has no attribute 'nothing'"):
        cn_clip.nothing  # noqa: B018
