"""A run from files in another format than the LMDB is the same run."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_run import log_lines, losses, run, tiny_config, weights

from formats_written import content, write_parquet, write_shards


def test_the_weights_of_a_run_do_not_depend_on_the_format(tmp_path: Path, lmdb: Path) -> None:
    """A run from TSV; and one that starts with shards and goes on with Parquet, in the middle of an epoch."""
    folder = lmdb.parent
    images, pairs = content(folder)
    paths = {
        "TSV": folder / "train",
        "WebDataset": Path(write_shards(tmp_path / "shards", images, pairs)),
        "Parquet": write_parquet(tmp_path / "train.parquet", images, pairs),
    }
    expected = run(tiny_config(tmp_path, lmdb, max_steps=8, name="LMDB"))
    found = {}
    for kind, more in {"TSV": {}, "WebDataset": {"save_step_frequency": 3}, "Parquet": {"resume": None}}.items():
        if "resume" in more:
            more = {"resume": found["WebDataset"] / "checkpoints" / "epoch_1_3.pt"}
        options = {"train_data": paths[kind], "val_data": folder / "valid", "name": kind, **more}
        found[kind] = run(tiny_config(tmp_path, lmdb, max_steps=8, **options))
        assert len(log_lines(found[kind], rf"train {kind} file contains 15 images and 20 pairs\.")) == 1
        assert len(log_lines(found[kind], r"val TSV file contains 15 images and 20 pairs\.")) == 1
        assert losses(found[kind]) == losses(expected)[3 if more.get("resume") else 0 :]
        ours, theirs = weights(found[kind]), weights(expected)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
