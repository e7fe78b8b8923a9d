"""Lines of text of every kind, the same on every run: what a tokeniser may meet."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence

SCRIPTS = {
    "latin": (0x41, 0x24F),
    "phonetic": (0x250, 0x2FF),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x52F),
    "armenian and hebrew": (0x530, 0x5FF),
    "arabic": (0x600, 0x77F),
    "thaana to arabic b": (0x780, 0x8FF),
    "indic": (0x900, 0xDFF),
    "thai to tibetan": (0xE00, 0xFFF),
    "burmese to ethiopic": (0x1000, 0x139F),
    "cherokee to mongolian": (0x13A0, 0x18AF),
    "limbu to vedic": (0x1900, 0x1CFF),
    "latin and greek extended": (0x1D00, 0x1FFF),
    "punctuation and symbols": (0x2000, 0x2BFF),
    "glagolitic to punctuation": (0x2C00, 0x2E7F),
    "radicals and kana": (0x2E80, 0x33FF),
    "ideographs": (0x3400, 0x9FFF),
    "yi to meetei": (0xA000, 0xABFF),
    "hangul": (0xAC00, 0xD7FB),
    "compatibility ideographs": (0xF900, 0xFAFF),
    "presentation forms": (0xFB00, 0xFEFF),
    "full width": (0xFF00, 0xFFEF),
    "plane 1 scripts": (0x10000, 0x1FFFF),
    "plane 2 ideographs": (0x20000, 0x2FFFF),
    "anything": (0x0, 0xD7FF),
}
SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
CONTROLS = "\x00\x01\x07\x08\x1b\x7f\x80\x9f\xad\u061c\u200c\u200d\u200e\u202e\u2066\ufffd\ufffe\uffff"
MARKS = [chr(c) for c in range(0x10000) if unicodedata.category(chr(c)) in ("Mn", "Mc", "Me")]
CASES = ["İSTANBUL", "ΟΔΥΣΣΕΥΣ", "ΑΣ", "straße", "ǅ", "ŉ", "K", "Å", "ﬁ", "ΐ", "Ǆ", "ẞ", "Σ", "ΐ", "ﷺ", "I", "ı"]
EMOJI = ["👨‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇨🇳", "1️⃣", "🧑🏿‍🚀", "❤️‍🔥", "☺", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🫠", "©️", "㊙️", "♀", "🀄"]
ODD = ["", " ", "\u3000", "“引号”", "‘单’", "「」『』", "——", "……", "[CLS]", "[UNK]", "##ing", "don't", "3.14%"]
LENGTHS = (99, 100, 101, 150, 199, 200, 201, 1000)


def varied_lines(count: int, vocabulary: Sequence[str]) -> Iterator[str]:
    """`count` lines, every kind in turn; `vocabulary` gives words that are known."""
    r = random.Random(20201123)
    pieces = [piece.removeprefix("##") for piece in vocabulary if not piece.startswith("[")]
    han = [piece for piece in pieces if len(piece) == 1 and "一" <= piece <= "鿿"]

    def script() -> str:
        first, last = r.choice(list(SCRIPTS.values()))
        words = (
            "".join(chr(r.randint(first, last)) for _ in range(r.randint(1, 6))) for _ in range(r.randint(1, 5))
        )
        return r.choice(["", " "]).join(words)

    def caption() -> str:
        return "".join(r.choices(han, k=r.randint(0, 40))) + r.choice("，。！？, .\u3000")

    def known() -> str:
        words = ("".join(r.choices(pieces, k=r.randint(1, 4))) for _ in range(r.randint(1, 12)))
        text = " ".join(words)
        return r.choice([text, text.upper(), text.title()])

    def long_word() -> str:
        word = r.choice(["a", "啊", "é", "한", "x́", r.choice(pieces), r.choice(MARKS)])
        return "看 " + (word * 1000)[: r.choice(LENGTHS)] + r.choice(["", " ", "。"]) + caption()

    def full_width() -> str:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in known()[:60])

    def marked() -> str:
        return "".join(c + "".join(r.choices(MARKS, k=r.randint(0, 3))) for c in r.choices(pieces, k=9))

    def surrogates() -> str:
        return (
            "照" + chr(r.randint(0xD800, 0xDBFF)) + r.choice("a 片") + chr(r.randint(0xDC00, 0xDFFF)) + caption()
        )

    def private() -> str:
        first = r.choice([0xE000, 0xF0000, 0x100000, 0x30000, 0x378, 0xE0000])
        return r.choice(["", "猫", "a"]) + chr(first + r.randint(0, 0xFF)) + r.choice(["b", " "]) + caption()

    def mixed() -> str:
        sources = (SPACES, CONTROLS, CASES, EMOJI, ODD, han, pieces)
        return "".join(r.choice(r.choice(sources)) for _ in range(r.randint(0, 25)))

    kinds: list[Callable[[], str]] = [
        *(script, caption, known, mixed, marked, full_width, script, caption, known, mixed, mixed),
        *(surrogates, private, long_word),
    ]
    for i in range(count):
        yield kinds[i % len(kinds)]() if i >= len(ODD) else ODD[i]


def code_points(every: int) -> list[str]:
    """Every assigned character but plain ideographs, syllables and private use; each `every`-th of the rest."""
    dense = [
        chr(c)
        for c in range(0x110000)
        if c % every == 0
        or (unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs") and not _uniform(c))
        or any(abs(c - edge) <= 1 for edge in (0x2B81F, 0x2B91F, 0xF8FF, 0xFFFFD))
    ]
    return [f"a{c}b中{c} {c}" for c in dense]


def _uniform(c: int) -> bool:
    return 0x3400 <= c <= 0x9FFF or 0xAC00 <= c <= 0xD7A3 or 0x17000 <= c <= 0x18CFF or 0x20000 <= c <= 0x3FFFF
