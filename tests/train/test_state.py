"""Checkpoints: their layout, the reference's, and what happens when writing fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import losses, metrics, run, tiny_config, weights

import cn_clip.checkpoint
from cn_clip.checkpoint import Checkpoint, load_model, read_checkpoint
from cn_clip.errors import UserError
from cn_clip.train.state import Position, where


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def test_checkpoints_have_the_documented_layout_and_describe_themselves(tmp_path: Path, lmdb: Path) -> None:
    folder = run(tiny_config(tmp_path, lmdb, save_step_frequency=3)) / "checkpoints"
    for name, epoch, step in (("epoch1.pt", 1, 5), ("epoch_2_6.pt", 2, 6), ("epoch_latest.pt", 2, 10)):
        state = content(folder / name)
        assert (state["epoch"], state["step"], state["name"]) == (epoch, step, "run")
        assert all(key.startswith("module.") for key in state["state_dict"])
        assert set(state["optimizer"]) == {"state", "param_groups"}
        assert [group["weight_decay"] for group in state["optimizer"]["param_groups"]] == [0.0, 0.2]
    model = load_model(read_checkpoint(folder / "epoch_latest.pt"))  # no architecture given
    assert not model.training
    assert model.config.vision.image_resolution == 32
    assert not [path for path in folder.iterdir() if "tmp" in path.name]


def foreign(path: Path) -> dict[str, Any]:
    """The content of one of our checkpoints as the reference would have written it."""
    state = content(path)
    return {key: state[key] for key in ("epoch", "step", "name", "state_dict", "optimizer")}


@pytest.mark.parametrize(("name", "rest"), [("epoch1.pt", range(6, 11)), ("epoch_1_3.pt", range(4, 11))])
def test_a_checkpoint_of_the_reference_resumes(tmp_path: Path, lmdb: Path, name: str, rest: range) -> None:
    whole = run(tiny_config(tmp_path, lmdb, name="whole", save_step_frequency=3))
    torch.save(foreign(whole / "checkpoints" / name), tmp_path / "reference.pt")
    resumed = run(tiny_config(tmp_path, lmdb, name="resumed", resume=tmp_path / "reference.pt"))
    assert [row["step"] for row in metrics(resumed) if "loss" in row] == list(rest)
    assert losses(resumed) == losses(whole)[rest.start - 1 :]
    ours, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_positions_of_checkpoints() -> None:
    def at(rest: dict[str, Any]) -> Position:
        return where(Checkpoint(Path("x.pt"), {}, None, rest), steps_per_epoch=5)

    assert at({"epoch": 2, "step": 10}) == Position(2, 0, 10)
    assert at({"epoch": 2, "step": 7}) == Position(1, 2, 7)
    assert at({"epoch": 3, "step": 3000}) == Position(3, 0, 3000)  # of other data: its own count of steps
    ours = {"epoch": 1, "batch": 4, "ended": False, "steps_per_epoch": 10}
    assert at({"epoch": 2, "step": 14, "position": ours}) == Position(1, 2, 14)
    with pytest.raises(UserError, match="--reset-data-offset"):
        at({"name": "weights only"})


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, lmdb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, lmdb, save_step_frequency=2)
    saved = torch.save

    def save(value: Any, file: Any) -> None:
        if value["step"] == 6:
            file.write(b"half a file")
            raise OSError(28, "No space left on device")
        saved(value, file)

    monkeypatch.setattr(cn_clip.checkpoint.torch, "save", save)
    with pytest.raises(UserError, match=r"epoch_2_6\.pt: cannot write: the disk is full"):
        run(config)
    monkeypatch.undo()
    folder = tmp_path / "logs" / "run" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {
        "epoch_1_2.pt",
        "epoch_1_4.pt",
        "epoch1.pt",
        "epoch_latest.pt",
    }
    assert content(folder / "epoch_latest.pt")["step"] == 5
    run(config)
    assert content(folder / "epoch_latest.pt")["step"] == 10


def test_no_hard_links_is_no_obstacle(tmp_path: Path, lmdb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    folder = run(tiny_config(tmp_path, lmdb, max_steps=1)) / "checkpoints"
    assert (folder / "epoch1.pt").read_bytes() == (folder / "epoch_latest.pt").read_bytes()
