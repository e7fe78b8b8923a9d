"""docs/weights.md: its blocks run, on the bundled model and a child of it in the place of the reader's."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cn_clip.checkpoint import read_checkpoint, write_checkpoint
from cn_clip.zoo import weights_file
from test_docs import ROOT, run_page


def test_the_page_runs(tmp_path: Path) -> None:
    bundled = read_checkpoint(weights_file("emoji-tiny"))
    torch.manual_seed(0)
    child = {
        f"module.{name}": tensor.float() * (1 + 0.02 * torch.randn(tensor.shape)) if tensor.ndim > 1 else tensor
        for name, tensor in bundled.state_dict.items()
    }
    content = {"epoch": 2, "step": 150, "name": "new_artist", "state_dict": child}
    described = {**content, "model_config": bundled.architecture().to_dict(), "optimizer": {"state": {0: {}}}}
    write_checkpoint(tmp_path / "finetuned.pt", described)
    printed = run_page(ROOT / "docs" / "weights.md", tmp_path, "cn-clip data sample --out emoji_cn")
    assert "finetuned.pt: training checkpoint of this package" in printed
    assert "they differ" in printed
    assert "soup.safetensors: OK" in printed
    rows = json.loads((tmp_path / "wise.json").read_text())["rows"]
    assert [row["alpha"] for row in rows] == [round(i / 10, 1) for i in range(11)]
    assert (tmp_path / "wise.html").read_text("utf-8").count("<circle") == 11
    # The mean of the child, a point of the path, and the bundled model.
    alpha = json.loads((tmp_path / "wise.json").read_text())["chosen_alpha"]
    one, other = bundled.state_dict["text_projection"].float(), child["module.text_projection"]
    soup = read_checkpoint(tmp_path / "soup.safetensors").state_dict["text_projection"]
    torch.testing.assert_close(soup, (other + (1 - alpha) * one + alpha * other + one) / 3, rtol=1e-5, atol=1e-6)
