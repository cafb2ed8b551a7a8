# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt prepare VIDEOS OUTPUT``: the command line of ``prepare``."""

from __future__ import annotations

import inspect
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lightning_crmt.data.prepare.prepare import Kind, prepare


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description."""


def prepare_command(words: Sequence[str]) -> int:
    """Prepare videos as the words of a command line say, and print a summary.

    Returns:
        The exit status: 1 if there is a kind that not a single video has, else 0, whatever was skipped.

    Raises:
        SystemExit: with status 2 and an explanation, if a word is wrong; with status 130, if interrupted.
    """
    what, _, _ = inspect.cleandoc(prepare.__doc__ or "").partition("\n\nArgs:")
    parser = ArgumentParser(
        prog="lightning-crmt prepare",
        description=what,
        epilog="Exit status: 0 if something was made or is there of each kind, though videos be skipped; 1 if of some "
        "kind there is nothing; 2 if nothing was tried because a word of the command is wrong.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_function_arguments(prepare, as_group=False, as_positional=True, skip={"kinds"})
    parser.add_argument(
        "--kinds",
        nargs="+",  # which jsonargparse does not derive from a sequence
        type=Kind,
        default=["frames", "spectrograms"],
        help="what to make, one or more, with spaces between.",
    )
    settings = parser.parse_args(list(words)).as_dict()
    try:
        report = prepare(**settings)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command again goes on from here\n")
    print(report)  # noqa: T201
    return 1 if report.nothing else 0
