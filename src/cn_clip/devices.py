"""Where a model runs and in which number format: one rule for every command.

usable_device("auto")            # the GPU if there is one
choose_precision("auto", device) # bf16 where the processor computes it itself, else fp32
"""

from __future__ import annotations

import torch

from cn_clip.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; `default_device` if it is None or `auto`.

    Raises:
        UserError: no such device, or not on this machine.
    """
    if device is None or device == "auto":
        device = default_device()
    try:
        found = torch.device(device)
        if found.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device {device}: PyTorch finds no GPU here; use cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {device}: {str(error).splitlines()[0]}") from None
    return found


def native_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 itself: elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if capabilities:
            return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        return torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return False


def choose_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where `native_bf16`, else fp32; another name is itself.

    Raises:
        UserError: no such precision.
    """
    if precision == "auto":
        return "bf16" if native_bf16(device) else "fp32"
    if precision not in PRECISIONS:
        raise UserError(f"no precision {precision}; choose one of auto, {', '.join(PRECISIONS)}")
    return precision
