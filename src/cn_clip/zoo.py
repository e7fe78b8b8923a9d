"""The models that have a name: the published ones, whose weights are in a local file, on Hugging Face or on
ModelScope, and the small ones that come with this package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
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


# Name -> file in the package's assets; its architecture is in the file.
BUNDLED: dict[str, str] = {"emoji-tiny": "emoji-tiny.safetensors"}


def available_models() -> list[str]:
    """Names of the published models, then of those that come with the package."""
    return [*MODELS, *BUNDLED]


def weights_root(download_root: str | None = None) -> Path:
    """The folder that downloaded weights are kept in."""
    return Path(download_root or DOWNLOAD_ROOT).expanduser()


def bundled_path(name: str) -> Path:
    """Where the file of a model that comes with the package belongs."""
    return Path(str(resources.files("cn_clip") / "assets" / BUNDLED[name]))


def weights_file(name: str, download_root: str | None = None, use_modelscope: bool = False) -> Path:
    """The local file of a named model's weights, downloaded first if it is a published one that is not there.

    Hugging Face downloads honour `HF_ENDPOINT` (a mirror's address) and show progress.

    Raises:
        UserError: unknown name, or no connection: the line says which file to put where; or a bundled model's file
            is not in this installation.
    """
    if name in BUNDLED:
        bundled = bundled_path(name)
        if not bundled.is_file():
            raise UserError(
                f"{bundled}: the weights of {name} are missing from this installation: install it again"
            )
        return bundled
    if name not in MODELS:
        raise UserError(
            f"no model {name}: there are {', '.join(available_models())}; a path must be an existing file"
        )
    model = MODELS[name]
    root = weights_root(download_root)
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
