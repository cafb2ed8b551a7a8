# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The words that ``certify`` and ``attack`` share, and how mistakes in them are told."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from lightning_crmt.checks import did_you_mean
from lightning_crmt.cli.explain import few_lines, stop

#: Where parts of an evaluation are kept, that it goes on from if it was stopped.
FINISHED = "finished"

#: What the rest of the words may begin with: options of `fit`.
_OF_FIT = ("--config", "-c", "--model", "--data", "--trainer", "--seed_everything", "--print_config", "--help.full")

#: What arguments of Python are called here.
_RENAMED = {
    "lipschitz=estimate_lipschitz(model, batches)": "--level estimated",
    "constants=": "--level ",
    "or SmoothedRobustness,": "or --level smoothed,",
    "`constants`": "--level",
    "`radii`": "--radii",
    "`budgets`": "--budget",
    "`modalities`": "--modalities",
    "`inputs`": "--inputs",
    "`split_batch`": "--split_batch",
    "`max_samples`": "--samples",
    "`sigma`": "--sigma",
    "`alpha`": "--alpha",
    "`max_draws`": "--max_draws",
    "`steps`": "--steps",
    "`restarts`": "--restarts",
}

EPILOG = """All other options are those of fit: --config, --model..., --data..., --trainer...

exit status: 0 done; 1 a bug, with its traceback; 2 words or a config that cannot be followed; 3 a share is below
--at_least"""


class Options(argparse.ArgumentParser):
    """A parser of the words of one subcommand that explains mistakes as the other subcommands do.

    Args:
        subcommand: what is typed after the program's name.
        what: the subcommand does.
        file: of the table with a row for each sample.
    """

    def __init__(self, subcommand: str, what: str, file: str) -> None:
        #: Those that were parsed.
        self.words: list[str] = []
        prog = f"lightning-crmt {subcommand}"
        usage = f"{prog} --config FILE --ckpt_path FILE --out FOLDER [--OPTION VALUE ...]"
        super().__init__(
            prog, usage=usage, description=what, epilog=EPILOG, allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=120),
        )  # fmt: skip
        self.add_argument("--ckpt_path", metavar="FILE", help="a checkpoint of the same config")
        self.add_argument("--out", type=Path, metavar="FOLDER", help=f"for {file}, summary.csv, figures, protocol.txt")
        self.add_argument(
            "--split", choices=("val", "test"), default="test", help="the part to measure; test by default"
        )
        self.add_argument(
            "--samples",
            type=int,
            metavar="N",
            help="N of its samples, evenly spread; all by default, 200 if smoothed",
        )
        self.add_argument("--modalities", nargs="+", metavar="NAME", help="those perturbed; all by default")
        self.add_argument("--inputs", nargs="+", metavar="NAME", help="names of the inputs, if not a CRMT module")
        self.add_argument("--split_batch", metavar="PATH", help="a function that takes batches apart, if it is needed")
        self.add_argument("--at_least", type=_share, metavar="SHARE", help="status 3 if a share in the table is lower")

    @override
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in a few lines, and end with status 2."""
        message = re.sub(r"^argument (--\w+): must", r"\1 must", message)
        if found := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = re.findall(r"\w+", found[3])
            near = did_you_mean(found[2], choices)
            message = f"{found[1]} must be {', '.join(choices[:-1])} or {choices[-1]}, got {found[2]!r}{near}"
        stop(few_lines(message))

    def parse(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Options of this subcommand, checked as far as they can be alone, and the words of ``fit`` among the others.

        Raises:
            SystemExit: with status 2 and the reason, for words that cannot be followed.
        """
        self.words = list(words)
        own, others = self.parse_known_args(words)
        known = [word for action in self._actions for word in action.option_strings if word.startswith("--")]
        for word in others:
            option = word.partition("=")[0]
            near = did_you_mean(option, known)
            if option.startswith("--") and "." not in option and option not in _OF_FIT and near:
                self.error(f"there is no option `{option}`{near}")
        if own.ckpt_path is None:
            self.error("--ckpt_path must be given: a model as the config makes it has learnt nothing")
        if not Path(own.ckpt_path).is_file():
            self.error(f"--ckpt_path must be a checkpoint, got {own.ckpt_path}: there is no such file")
        if own.out is None:
            self.error("--out must be given: the folder for tables and figures")
        if own.out.exists() and (not own.out.is_dir() or any(each.name != FINISHED for each in own.out.iterdir())):
            self.error(f"--out must be a new folder or an empty one, got {own.out}")
        if own.samples is not None and own.samples < 1:
            self.error(f"--samples must be at least 1, got {own.samples}")
        return own, others

    @contextmanager
    def checked(self) -> Iterator[None]:
        """What constructors inside refuse is told in the words of the command line.

        Raises:
            SystemExit: with status 2, in place of their errors.
        """
        try:
            yield
        except (ValueError, TypeError, ImportError, AttributeError) as error:
            self.error(in_options(str(error)))


def in_options(message: str) -> str:
    """What an error says of arguments, said of options.

    >>> in_options("`radii` must be numbers, got 'a'")
    "--radii must be numbers, got 'a'"
    """
    for argument, option in _RENAMED.items():
        message = message.replace(argument, option)
    return message


def by_modality(text: str) -> dict[str, float]:
    """Numbers by modality, as they are typed.

    Raises:
        argparse.ArgumentTypeError: for words of another form.

    >>> by_modality("audio=0.1,image=3")
    {'audio': 0.1, 'image': 3.0}
    """
    numbers = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be like audio=0.1,image=0.3, got {text!r}") from None
        if not name or name in numbers:
            raise argparse.ArgumentTypeError(f"must name each modality once, as in audio=0.1,image=0.3, got {text!r}")
        numbers[name] = value
    return numbers


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be a share between 0 and 1, got {text!r}")
    return share
