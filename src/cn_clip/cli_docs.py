"""The command reference, from the code: `python -m cn_clip.cli_docs docs/cli.md` (`--check` compares).

A verb's page is read from the help that `cn-clip VERB --help` prints, so it cannot say anything else.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from cn_clip.cli import VERBS, Verb, load, run
from cn_clip.errors import UserError
from cn_clip.files import atomic_open

WIDTH = "2000"  # columns: no line of help wraps, whatever the terminal
HEAD = """# Commands

<!-- Written by `make docs` from the code. Change the functions and their docstrings, not this page. -->

`cn-clip VERB --flags`, or `python -m cn_clip VERB --flags`. In a flag's name `-` and `_` are interchangeable,
`--flag value` and `--flag=value` too; an empty value (`--flag=`) means not given. A flag without a value is
a switch: off until it is given.
Exit status: 0 done, 1 wrong input (one line on standard error), 2 wrong usage, 130 stopped by Ctrl-C.
"""


class Argument(NamedTuple):
    """One row of a verb's help."""

    names: tuple[str, ...]  # ("--top-k",), or ("PREDICTIONS",) for a positional argument
    value: str  # "INT", "{t2i,i2t}"; empty for a switch
    default: str  # "" where the argument is required
    help: str

    @property
    def flag(self) -> bool:
        """False for a positional argument."""
        return self.names[0].startswith("-")


def arguments(name: str) -> list[Argument]:
    """The arguments of the verb `name`, in the order of its help, without `--help`."""
    parameters = inspect.signature(load(VERBS[name])).parameters.values()
    positional = iter([p.name.upper() for p in parameters if p.kind is p.POSITIONAL_ONLY])
    rows = _parse(help_text(name))
    return [row if row.names else row._replace(names=(next(positional),)) for row in rows]


def help_text(name: str) -> str:
    """What `cn-clip NAME --help` prints: plain text, one line an argument, no colour."""
    output = StringIO()
    plain = _environment(COLUMNS=WIDTH, NO_COLOR="1", FORCE_COLOR=None)
    with plain, redirect_stdout(output), suppress(SystemExit):  # the way `--help` ends
        run(VERBS[name], ["--help"], prog=f"cn-clip {name}")
    return output.getvalue()


def render() -> str:
    """The whole page."""
    contents = "\n".join(f"- [`cn-clip {name}`](#{_anchor(name)}): {verb.help}" for name, verb in VERBS.items())
    return "\n".join([HEAD, contents, "", *(_section(name, verb) for name, verb in VERBS.items())])


def main(argv: list[str] | None = None) -> int:
    """`FILE` writes the page; `--check FILE` exits 1, with one line, if the file differs from the code."""
    args = list(sys.argv[1:] if argv is None else argv)
    check = "--check" in args
    files = [arg for arg in args if arg != "--check"]
    if len(files) != 1:
        print("usage: python -m cn_clip.cli_docs [--check] docs/cli.md", file=sys.stderr)
        return 2
    path, page = Path(files[0]), render()
    if not check:
        try:
            with atomic_open(path) as file:
                file.write(page)
        except UserError as error:
            print(f"cli_docs: {error}", file=sys.stderr)
            return 1
        return 0
    if not path.is_file() or path.read_text(encoding="utf-8") != page:
        print(f"cli_docs: {path} is not what the code says: run make docs", file=sys.stderr)
        return 1
    return 0


def _section(name: str, verb: Verb) -> str:
    rows = arguments(name)
    usage = " ".join(
        ["cn-clip", name]
        + [f"[{row.names[0]}]" if row.default else row.names[0] for row in rows if not row.flag]
        + [f"{row.names[-1]} {row.value}" for row in rows if row.flag and not row.default]
        + ["[--flags]"] * any(row.flag and row.default for row in rows)
    )
    lines = [f"## cn-clip {name}", "", _description(verb), "", "```text", usage, "```", ""]
    if rows:
        lines += ["| argument | value | default | |", "|---|---|---|---|"]
        lines += [_row(row) for row in rows]
        lines += [""]
    return "\n".join(lines)


def _row(row: Argument) -> str:
    names = ", ".join(f"`{name}`" for name in row.names)
    default = f"`{row.default}`" if row.default else "required"
    value = f"`{row.value}`" if row.value else ""
    return "| " + " | ".join(_cell(cell) for cell in (names, value, default, row.help)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _anchor(name: str) -> str:
    return f"cn-clip-{name}".replace(" ", "-")


def _description(verb: Verb) -> str:
    """The function's docstring down to its sections, a paragraph a line."""
    text = re.split(r"\n(?:Args|Returns|Raises|Example):\n", inspect.getdoc(load(verb)) or verb.help)[0]
    paragraphs = re.split(r"\n{2,}", text.strip())
    return "\n\n".join(p if p.startswith(("- ", "    ")) else " ".join(p.split()) for p in paragraphs)


def _parse(text: str) -> list[Argument]:
    """The rows of a help text: `  --flag VALUE  help (default: x)`, the help perhaps on the next lines."""
    rows: list[list[str]] = []  # [flags and value, help]
    group = ""
    for line in text.splitlines():
        line = re.sub(r"[│╭╮╰╯─]|-{5,}", " ", line).rstrip()  # the boxes around a group
        plain = line.strip()
        if plain == "positional arguments" or plain.endswith("options"):
            group = plain
        start = r"[A-Z{\[]" if group == "positional arguments" else r"-\S"
        row = rf" {{1,3}}({start}.*?)(?: {{2,}}(.*))?$"
        if group and (match := re.match(row, line)):
            rows.append([match[1], match[2] or ""])
        elif rows and plain and line.startswith("    "):
            rows[-1][1] += f" {plain}"
    return [row for row in (_argument(*row) for row in rows) if "--help" not in row.names]


def _argument(left: str, right: str) -> Argument:
    names = tuple(re.findall(r"(?:^|(?<=, ))--?[a-z][\w-]*", left))
    value = left.split(", ")[-1].removeprefix(names[-1]).strip() if names else left
    value = value.replace("{None}|", "").replace("|{None}", "")
    default = re.search(r"\(default: (.*?)\)$", right.removesuffix(" (repeatable)").strip())
    text = re.sub(r" ?\((default: .*?|required|repeatable|optional)\)$", "", right).strip()
    shown = default[1] if default else "" if "(required)" in right else "none"
    if not value:
        shown = "off"  # a switch: off until it is given
    return Argument(names, value, {"None": "none", "''": "none"}.get(shown, shown), text)


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


if __name__ == "__main__":
    sys.exit(main())
