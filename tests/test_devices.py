"""One rule for devices and number formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cn_clip import devices
from cn_clip.devices import choose_precision, native_bf16, usable_device
from cn_clip.errors import UserError


def test_auto_is_the_gpu_if_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    for name in (None, "auto"):
        assert usable_device(name).type == expected
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said() -> None:
    with pytest.raises(UserError, match="device cuda: PyTorch finds no GPU here; use cpu"):
        usable_device("cuda")


def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(devices, "native_bf16", lambda _, native=native: native)
        assert choose_precision("auto", cpu) == expected
        assert choose_precision("fp16", cpu) == "fp16"
    with pytest.raises(UserError, match="no precision int3; choose one of auto, fp32, bf16, fp16"):
        choose_precision("int3", cpu)


def test_native_bf16_is_what_the_processor_says() -> None:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except FileNotFoundError:
        pytest.skip("no /proc/cpuinfo")
    if "avx2" not in flags:
        pytest.skip("not an x86 processor")
    assert native_bf16(torch.device("cpu")) == bool({"avx512_bf16", "amx_bf16"} & set(flags))
    assert not native_bf16(torch.device("meta"))
