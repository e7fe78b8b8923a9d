"""The one text path: clean-up, WordPiece (Rust), cutting to the context length, and a report of what was cut.

    batch = default_tokenizer().encode(["一只可爱的猫"])
    batch.ids          # int64 [1, 52], padded with 0
    batch.truncated    # bool [1]: which texts lost their end

Ids equal those of the reference's training and evaluation pipeline (lower case, curly quotes made straight,
BERT's basic tokeniser, WordPiece). Its bare `tokenize` leaves curly quotes, which become [UNK] there.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cn_clip.config import CONTEXT_LENGTH
from cn_clip.errors import UserError

MAX_WORD = 200  # characters; a longer word is one [UNK]
# Where the Rust tables are older than Python's (Unicode 8), wrong (one block of CJK is one row too short) or
# drop what Python keeps (private use, surrogates). Coarse: a character in it is looked up, not assumed.
_RARE = re.compile(
    "[\u061d\u07fd\u0870-\u0eff\u166d\u1734\u180f\u1885\u1886\u1ab0-\u1aff\u1b4c-\u1b7f\u1df6-\u1dfb\u2e43-\u2e7f"
    "\ua82c\ua8c5\ua8ff\ua9bd\ud800-\uf8ff\U00010000-\U0001efff\U0002b820-\U0002b91f\U0002fa20-\U0010ffff]"
)
_UNKNOWN = "\ua000"  # a letter that the vocabulary does not hold


class TokenBatch(NamedTuple):
    """Token ids of some texts.

    Attributes:
        ids: int64 [N, L]: [CLS] word pieces [SEP], then 0.
        lengths: int64 [N]: word pieces of the whole text, [CLS] and [SEP] included, before any cutting.
        truncated: bool [N]: True where the text did not fit.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


class Tokenizer:
    """BERT's uncased WordPiece over a vocabulary file (one piece a line)."""

    def __init__(self, vocab_file: str | os.PathLike[str] | None = None) -> None:
        """Read the vocabulary; the published Chinese one of 21,128 pieces if None.

        Raises:
            UserError: the file lacks one of [PAD] [UNK] [CLS] [SEP].
        """
        if vocab_file is None:
            text = (resources.files("cn_clip") / "assets" / "vocab.txt").read_text(encoding="utf-8")
        else:
            text = Path(vocab_file).read_text(encoding="utf-8")
        self.vocab = {piece.strip(): i for i, piece in enumerate(text.rstrip("\n").split("\n"))}
        for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
            if piece not in self.vocab:
                raise UserError(f"{vocab_file}: not a BERT vocabulary: no {piece}")
        self._cls, self._sep = self.vocab["[CLS]"], self.vocab["[SEP]"]
        self._rust = _build(self.vocab)

    def encode(
        self, texts: Sequence[str], context_length: int | None = CONTEXT_LENGTH, pad_to_longest: bool = False
    ) -> TokenBatch:
        """Token ids of N texts.

        Args:
            texts: any strings; an empty one is [CLS] [SEP].
            context_length: pieces kept of a text, [CLS] and [SEP] included; None keeps all.
            pad_to_longest: make the batch as wide as its longest text instead of `context_length`.

        Raises:
            UserError: `context_length` is below 3, or an item is not a string.
        """
        if context_length is not None and context_length < 3:
            raise UserError(f"context length must be 3 or more ([CLS], a piece, [SEP]), not {context_length}")
        pieces = [e.ids for e in self._rust.encode_batch_fast([normalise(t) for t in texts])]
        lengths = np.array([len(p) + 2 for p in pieces], dtype=np.int64)
        longest = int(lengths.max(initial=2))
        width = longest if context_length is None else context_length
        if pad_to_longest:
            width = min(width, longest)
        ids = np.zeros((len(pieces), width), dtype=np.int64)
        for row, p in zip(ids, pieces, strict=True):
            p = p[: width - 2]
            row[0] = self._cls
            row[1 : len(p) + 1] = p
            row[len(p) + 1] = self._sep
        return TokenBatch(ids, lengths, lengths > width)

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The pieces of some ids, [PAD] left out."""
        return [self._rust.id_to_token(int(i)) or "[UNK]" for i in ids if int(i) != self.vocab["[PAD]"]]


@lru_cache(maxsize=1)
def default_tokenizer() -> Tokenizer:
    """The published vocabulary's tokenizer; read once a process."""
    return Tokenizer()


def normalise(text: str) -> str:
    """The one clean-up before WordPiece: lower case, curly double quotes made straight.

    Raises:
        UserError: not a string.
    """
    if not isinstance(text, str):
        raise UserError(f"expected a text (a string), got {type(text).__name__}: {text!r:.60}")
    return _RARE.sub(lambda match: as_python_sees_it(match[0]), text.lower().replace("“", '"').replace("”", '"'))


def rare_characters() -> list[int]:
    """Code points at which Rust's tables may differ from Python's, lone surrogates left out."""
    codes = (code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF)
    return [code for code in codes if _RARE.match(chr(code))]


def as_python_sees_it(char: str) -> str:
    """What Rust must be given to do with a rare character what the reference does, by Python's tables."""
    category = unicodedata.category(char)
    if category in ("Mn", "Cf"):
        return ""
    if category[0] == "P" or "\U0002b820" <= char <= "\U0002b91f":
        return f" {_UNKNOWN} "  # punctuation and ideographs stand alone
    # A lone surrogate (broken JSON escapes make them) could not even be passed on.
    return _UNKNOWN if category in ("Co", "Cs") or char in "\u166d\u1734" else char


def _build(vocab: dict[str, int]):  # type: ignore[no-untyped-def]
    import tokenizers

    model = tokenizers.models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD)
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return rust
