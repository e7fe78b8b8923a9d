"""Repositories of a hub in Hugging Face's protocol: the files that a model needs, and no others.

    folder = snapshot("OFA-Sys/chinese-clip-vit-base-patch16")

`HF_ENDPOINT` (a mirror's address) and the hub's own cache and token are honoured.
"""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cn_clip.conversion.folder import CONFIG, MODULES, OPEN_CLIP_CONFIG, SMALL_FILES, WEIGHTS, read_json, shards
from cn_clip.errors import UserError

Fetch = Callable[[str], "Path | None"]  # the local path of a repository's file, None where there is none


def is_repository(name: str) -> bool:
    """Whether this may be the id of a repository (`owner/name`), and is nothing on this machine."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def snapshot(repository: str, download_root: str | None = None) -> Path:
    """A local folder with a repository's model: what is there already is not asked for again.

    Args:
        repository: its id, `owner/name`.
        download_root: where to keep it, in a folder of its name; the hub's own cache if None.

    Raises:
        UserError: no such repository, no connection, or no weights in it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    root = Path(download_root).expanduser() / repository.replace("/", "--") if download_root else None

    def here(file: str) -> Path | None:
        if root:
            return root / file if (root / file).is_file() else None
        try:
            return Path(hf_hub_download(repository, file, local_files_only=True))
        except LocalEntryNotFoundError:
            return None

    def there(file: str) -> Path | None:
        try:
            return here(file) or Path(hf_hub_download(repository, file, local_dir=root))
        except LocalEntryNotFoundError:
            raise  # no connection
        except EntryNotFoundError:
            return None

    try:
        if found := _collect(here):
            return found
        require_connection()
        found = _collect(there)
    except UserError:
        raise
    except Exception as error:  # the hub's client has its own errors, its HTTP library's and the socket's
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"cannot download {repository} ({reason}); get its files on another machine and give the path of "
            "their folder"
        ) from None
    if found is None:
        raise UserError(f"{repository}: a repository without {CONFIG} and weights ({', '.join(WEIGHTS[:4])})")
    return found


def require_connection() -> None:
    """Ask the hub's address whether it is there: its client would try for half a minute, with a warning each time.

    Raises:
        URLError, OSError: it is not.
    """
    from huggingface_hub.constants import ENDPOINT

    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=10).close()
    except urllib.error.URLError as error:
        # It answers an error, or with a certificate that only the client knows: the real request counts.
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(error.reason, ssl.SSLError):
            raise


def _collect(fetch: Fetch) -> Path | None:
    """Fetch a model's files, settings first; None if a file that it cannot do without is not to be had."""
    config = fetch(CONFIG) or fetch(OPEN_CLIP_CONFIG)
    if config is None:
        modules = fetch(MODULES)  # of sentence-transformers: the model may be in a folder of its own
        first = (read_json(modules, list) or [{}])[0] if modules else {}
        inner = first.get("path") if isinstance(first, dict) else None
        if not isinstance(inner, str) or not re.fullmatch(r"[\w.-]+", inner) or inner == "..":
            return None
        return _collect(lambda file: fetch(f"{inner}/{file}"))
    for name in WEIGHTS:
        if weights := fetch(name):
            parts = sorted(set(shards(weights).values())) if name.endswith(".json") else []
            if not all(fetch(part) for part in parts):
                return None
            for small in SMALL_FILES:
                fetch(small)
            return config.parent
    return None
