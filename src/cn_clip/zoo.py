"""The published models: their towers, and where their weights are (a local file, Hugging Face, ModelScope)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cn_clip.config import ModelConfig, model_config
from cn_clip.errors import MissingExtra, UserError
from cn_clip.hub import require_connection

DOWNLOAD_ROOT = Path("~/.cache/clip")
_BASE, _LARGE, _RBT3 = "RoBERTa-wwm-ext-base-chinese", "RoBERTa-wwm-ext-large-chinese", "RBT3-chinese"


@dataclass(frozen=True)
class Published:
    """One published model."""

    vision: str
    text: str
    repository: str  # under OFA-Sys on Hugging Face, AI-ModelScope on ModelScope
    file: str

    @property
    def config(self) -> ModelConfig:
        """Its architecture."""
        return model_config(self.vision, self.text)


MODELS: dict[str, Published] = {
    "ViT-B-16": Published("ViT-B-16", _BASE, "chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt"),
    "ViT-L-14": Published("ViT-L-14", _BASE, "chinese-clip-vit-large-patch14", "clip_cn_vit-l-14.pt"),
    "ViT-L-14-336": Published(
        "ViT-L-14-336", _BASE, "chinese-clip-vit-large-patch14-336px", "clip_cn_vit-l-14-336.pt"
    ),
    "ViT-H-14": Published("ViT-H-14", _LARGE, "chinese-clip-vit-huge-patch14", "clip_cn_vit-h-14.pt"),
    "RN50": Published("RN50", _RBT3, "chinese-clip-rn50", "clip_cn_rn50.pt"),
}


def available_models() -> list[str]:
    """Names of the published models."""
    return list(MODELS)


def weights_file(name: str, download_root: str | None = None, use_modelscope: bool = False) -> Path:
    """The local file of a published model's weights, downloaded first if it is not there.

    Hugging Face downloads honour `HF_ENDPOINT` (a mirror's address) and show progress.

    Raises:
        UserError: unknown name, or no connection: the line says which file to put where.
    """
    if name not in MODELS:
        raise UserError(f"no model {name}: published are {', '.join(MODELS)}; a path must be an existing file")
    model = MODELS[name]
    root = Path(download_root or DOWNLOAD_ROOT).expanduser()
    target = root / model.file
    if target.is_file():
        return target
    if target.exists():
        raise UserError(f"{target}: exists and is not a file; move it away")
    where = f"{'AI-ModelScope' if use_modelscope else 'OFA-Sys'}/{model.repository}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        download = _from_modelscope if use_modelscope else _from_hugging_face
        return download(where, model.file, root)
    except MissingExtra:
        raise
    except Exception as error:  # each hub has its own errors, its HTTP library's and the socket's
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"cannot download {name} ({reason}); get {model.file} from {where} on another machine "
            f"and put it at {target}"
        ) from None


def _from_hugging_face(repository: str, file: str, root: Path) -> Path:
    from huggingface_hub import hf_hub_download

    require_connection()
    return Path(hf_hub_download(repository, filename=file, local_dir=root))


def _from_modelscope(repository: str, file: str, root: Path) -> Path:
    try:
        from modelscope.hub.file_download import model_file_download
    except ImportError:
        raise MissingExtra("modelscope", "modelscope", "downloading from ModelScope") from None
    return Path(model_file_download(model_id=repository, file_path=file, local_dir=str(root)))


def models(download_root: str | None = None) -> None:
    """List the published models: towers, parameters, input resolution, feature width, and whether they are here.

    Args:
        download_root: where weights are kept; ~/.cache/clip by default.
    """
    import torch

    from cn_clip.models.clip import CLIP

    root = Path(download_root or DOWNLOAD_ROOT).expanduser()
    print(f"{'model':14}{'parameters':>12}{'pixels':>8}{'width':>7}  {'weights':32} text tower")
    for name, model in MODELS.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in CLIP(model.config).parameters())
        vision = model.config.vision
        state = "here" if (root / model.file).is_file() else "not here"
        print(
            f"{name:14}{count:12,}{vision.image_resolution:8}{vision.embed_dim:7}  "
            f"{f'{model.file} {state}':32} {model.text}"
        )
    print(f"weights are kept in {root}")
