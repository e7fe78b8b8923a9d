"""Errors whose message is for the user: one line, no traceback on the command line."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong input. The message is one line: which file, which line or id, what was expected, what to do.

    `cn-clip` prints it as `cn-clip: error: …` and exits with status 1.
    """


class MissingExtra(UserError):
    """An optional dependency is not installed; the message names the command that installs it."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f'{why} needs {package}: pip install "chinese-clip[{extra}]"')
