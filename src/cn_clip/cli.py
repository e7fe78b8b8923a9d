"""`cn-clip VERB --flags`: a table from verb to function. No logic lives here.

A verb's function takes typed arguments or one dataclass: its signature is the flags, its docstring the help
(read by tyro). Functions are imported only when their verb is called, so that `cn-clip --help` is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from cn_clip.errors import UserError


class Verb(NamedTuple):
    """One command: where its function is, and a line of help."""

    target: str  # "module:function"
    help: str
    defaults: str = ""  # "module:function" of (function, args) -> the same, with other defaults


VERBS: dict[str, Verb] = {
    "data import": Verb("cn_clip.data.imports.run:import_data", "captioned pictures of any layout -> TSV, JSONL"),
    "data build-lmdb": Verb("cn_clip.data.build_lmdb:build_lmdb", "TSV images and JSONL texts -> LMDB"),
    "data check": Verb("cn_clip.data.check:check", "report every problem of a dataset, with file and line"),
    "data stats": Verb("cn_clip.data.stats:stats", "counts, lengths, sizes and repetitions of a dataset; a page"),
    "data dedup": Verb(
        "cn_clip.dedup:dedup", "copies of pictures within and across splits; a dataset without them"
    ),
    "data invert": Verb("cn_clip.data.formats:invert", "text -> images annotations to image -> texts"),
    "data sample": Verb("cn_clip.data.emoji_cn:sample", "write the sample dataset emoji_cn"),
    "data build-sample": Verb("cn_clip.data.emoji_cn:build", "build emoji_cn afresh from its npm packages"),
    "train": Verb(
        "cn_clip.train.loop:train", "finetune, or train from scratch", "cn_clip.train.recipe:with_recipe"
    ),
    "extract": Verb("cn_clip.eval.extract:extract", "image and text features of a dataset"),
    "topk": Verb("cn_clip.eval.knn:topk", "the k nearest images of each text, or texts of each image"),
    "recall": Verb("cn_clip.eval.recall:recall", "recall@k of predictions, in either direction"),
    "weights join": Verb("cn_clip.towers:join", "an image tower and a Chinese text tower of two models -> one"),
    "weights inspect": Verb("cn_clip.weights.inspection:inspect", "what a file of weights holds"),
    "weights convert": Verb("cn_clip.weights.convert:convert", "weights to .pt, safetensors or Hugging Face"),
    "weights diff": Verb("cn_clip.weights.diff:diff", "where two files of weights differ"),
    "weights interpolate": Verb("cn_clip.weights.interpolate:interpolate", "between two checkpoints (WiSE-FT)"),
    "weights average": Verb("cn_clip.weights.interpolate:average", "the mean of checkpoints (model soup)"),
    "weights verify": Verb("cn_clip.weights.checksums:verify", "check or write a file's SHA-256"),
    "models": Verb("cn_clip.weights.listing:models", "the named models, and which of them are on this machine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status (0 done, 1 wrong input, 130 stopped, else the verb's own).

    Raises:
        SystemExit: wrong usage of a verb (status 2), or its `--help` (status 0).
    """
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # what cannot be written must show here, not when the interpreter ends
        return status
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("cn-clip: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as error:
        if error.filename is None:
            _discard_output()
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"cn-clip {version('chinese-clip')}")
        return 0
    name = next((n for n in (" ".join(args[:2]), args[0]) if n.replace("_", "-") in VERBS), None)
    if name is None:
        group = [verb for verb in VERBS if verb.split()[0] == args[0]]
        if group and (len(args) == 1 or args[1] in ("-h", "--help")):
            print(_overview(group))
            return 0
        print(f"cn-clip: error: no command {' '.join(args[:2])!r}; see cn-clip --help", file=sys.stderr)
        return 2
    result = run(VERBS[name.replace("_", "-")], args[len(name.split()) :], prog=f"cn-clip {name}")
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def run(verb: Verb, args: Sequence[str], prog: str) -> object:
    """Parse `args` into the verb's arguments and call its function.

    Raises:
        SystemExit: wrong usage (status 2), or `--help` (status 0).
    """
    import tyro

    function, left = load(verb), clean(args)
    if verb.defaults:
        function, left = _import(verb.defaults)(function, left)
    return tyro.cli(function, prog=prog, args=left, config=config())


def load(verb: Verb) -> Callable[..., Any]:
    """Import a verb's function."""
    return _import(verb.target)


def _import(target: str) -> Callable[..., Any]:
    module, function = target.split(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def config() -> tuple[Any, ...]:
    """How tyro reads signatures here: `--flag` alone for booleans, a dataclass's fields without a prefix."""
    import tyro

    return (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def clean(args: Sequence[str]) -> list[str]:
    """Drop flags with an empty value (`--index=`: not given) and spell `none` as tyro does."""
    kept: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if arg == "" and kept and kept[-1].startswith("--"):
            kept.pop()
        elif flag.startswith("--") and equals:
            if value != "":
                kept += [flag, "None" if value.lower() == "none" else value]
        else:
            kept.append("None" if arg.lower() == "none" else arg)
    return kept


def _overview(names: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, VERBS)) + 2
    rows = "\n".join(f"  {name:{width}}{VERBS[name].help}" for name in names)
    return (
        "usage: cn-clip COMMAND [--flags]\n\n"
        "Chinese CLIP: train, run and search a Chinese image-text model.\n\n"
        f"commands:\n{rows}\n\ncn-clip COMMAND --help lists a command's flags."
    )


def _fail(message: str) -> int:
    print(f"cn-clip: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _discard_output() -> None:
    """Nobody reads standard output, or it is full: the interpreter must not try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
