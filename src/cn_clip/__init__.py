"""Chinese CLIP: a Chinese image-text contrastive model, and what people do with it.

    from cn_clip import Encoder                # vectors of pictures and sentences
    import cn_clip.clip as clip                # the documented API: load_from_name, tokenize, …

Importing this package imports neither torch nor anything else heavy: names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cn_clip.encoder import Encoder as Encoder
    from cn_clip.errors import UserError as UserError

_HOME = {"Encoder": "cn_clip.encoder", "UserError": "cn_clip.errors"}

__all__ = ["Encoder", "UserError"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cn_clip' has no attribute {name!r}")
