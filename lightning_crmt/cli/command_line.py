# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""LightningCLI as this package sets it up, to be used as it is or subclassed."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from typing_extensions import override

from lightning_crmt.cli.explain import broken_file, explain, stop
from lightning_crmt.cli.failures import own_bug
from lightning_crmt.cli.help import FullHelp, Parser, short_help
from lightning_crmt.cli.places import config_files
from lightning_crmt.training import callbacks_of
from lightning_crmt.version import __version__

#: What Lightning finds a checkpoint for by itself.
_ALIASES = {"best", "last", "hpc", "registry"}

_USUAL_KEYS = {"config", "trainer", "model", "data", "seed_everything", "ckpt_path"}

#: Keys of subcommands, in the configs that these save, which say nothing of model, data and Trainer.
_OF_SUBCOMMANDS = ("ckpt_path", "weights_only", "verbose", "return_predictions")


class CRMTCLI(LightningCLI):
    """The command line of this package; subclass it to add options, to link arguments, or to read in another way.

    A model and a data module of any class are made from YAML and from options, those of this package by their short
    names. Override what LightningCLI lets you override, such as ``add_arguments_to_parser``, and run your class by
    ``main(cli=Mine)``; ``docs/command_line.md`` shows how.

    Args:
        args: the words of the command line, by default those typed; or settings as a dict or Namespace.
        run: execute the subcommand; else take no subcommand, and only make model, data module and Trainer.
        **settings: of LightningCLI, in place of those chosen here; ``parser_kwargs`` are added to the ones chosen here.

    Raises:
        SystemExit: with status 2, after an explanation of at most five lines, for words or a config that cannot be
            followed. What constructors and the Trainer raise passes through.

    >>> from unittest.mock import patch
    >>> class Mine(CRMTCLI):
    ...     def add_arguments_to_parser(self, parser):
    ...         parser.link_arguments("seed_everything", "data.init_args.seed")
    >>> words = ["--model=CRMTModule", "--model.encoders.fou=MLP", "--model.encoders.fou.in_features=76",
    ...     "--model.encoders.fou.out_features=64", "--model.num_classes=10", "--data=UCIMultiFeatures",
    ...     "--data.views=[fou]", "--trainer.logger=false", "--trainer.accelerator=cpu", "--seed_everything=3"]
    >>> with patch("sys.argv", ["mine"]):  # as no words were typed
    ...     Mine(words, run=False).datamodule.seed
    3
    """

    #: What the program is called.
    prog: ClassVar[str] = "lightning-crmt"

    def __init__(self, args: ArgsType = None, run: bool = True, **settings: Any) -> None:
        self.words = sys.argv[1:] if args is None else args if isinstance(args, list) else []
        _import_from_here(self.words)
        chosen: dict[str, Any] = {
            "model_class": LightningModule,
            "datamodule_class": LightningDataModule,
            "subclass_mode_model": True,
            "subclass_mode_data": True,
            "auto_configure_optimizers": False,  # the module makes its own, with a group for the integration weights
            "save_config_kwargs": {"overwrite": True},
            "seed_everything_default": 0,
            "parser_class": Parser,
        }
        parsers = {"prog": self.prog, "version": __version__, **settings.pop("parser_kwargs", {})}
        super().__init__(args=args, run=run, parser_kwargs=parsers, **{**chosen, **settings})

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Parsers that raise what is explained here, and do not take the beginning of an option for the option."""
        return super().init_parser(**{"allow_abbrev": False, "exit_on_error": False, **kwargs})

    @override
    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """As LightningCLI does; without subcommands, configs may hold what ``fit`` saves with its own."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if not add_subcommands:
            for name in _OF_SUBCOMMANDS:
                self.parser.add_argument(f"--{name}", type=Any, help=SUPPRESS)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.add_argument("--help.full", action=FullHelp, nargs=0, dest=SUPPRESS, help="Show every option and exit.")
        if isinstance(parser, Parser):
            usual = {*_USUAL_KEYS, *self._subcommand_method_arguments[subcommand]}
            texts = {action.dest: str(action.help or "") for action in parser._actions}
            keys = [key for key in vars(parser.get_defaults(skip_validation=True)) if key not in usual]
            parser.short_help = short_help(self.prog, subcommand, {key: texts.get(key, "") for key in keys})
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As LightningCLI does; errors are explained in a few lines, and a checkpoint that is not there is one.

        Raises:
            SystemExit: with status 2, see the class.
            Exception: whatever a module of one's own raises while it is imported.
            FileNotFoundError: if there is no file ``ckpt_path``.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            self._stop(error)
        except UnicodeDecodeError as error:
            stop(broken_file(self.words) or str(error))
        subcommand = self.config.get("subcommand")
        path = str(self.config[subcommand].get("ckpt_path") or "") if subcommand else ""
        if path and path not in _ALIASES and "://" not in path and not Path(path).exists():
            raise FileNotFoundError(f"`ckpt_path` must be a checkpoint, got {path}: there is no such file")

    def _parse_ckpt_path(self) -> None:
        """As LightningCLI does, which reads hyperparameters out of the checkpoint.

        Raises:
            ValueError: if it is no checkpoint.
        """
        try:
            super()._parse_ckpt_path()
        except ArgumentError as error:  # hyperparameters that the module does not take
            self._stop(error)
        except Exception as error:  # whatever reading a file of another kind raises
            reason = str(error).partition("\n")[0]
            raise ValueError(f"`ckpt_path` must be a checkpoint, which cannot be read: {reason}") from error

    @override
    def instantiate_classes(self) -> None:
        """As LightningCLI does; tracebacks that go through here are of constructors."""
        super().instantiate_classes()

    def after_predict(self) -> None:
        """Saves what ``predict_step`` returned, by batch, beside the logs, and says where; under DDP that of process 0.

        Not where a callback writes predictions, or none are kept.
        """
        trainer = self.trainer
        predictions = trainer.predict_loop.predictions
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        if not predictions or getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        if callbacks_of(trainer, BasePredictionWriter):
            return
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(predictions, folder / "predictions.pt")
        part = "" if trainer.world_size == 1 else f", of process 0 of {trainer.world_size}"
        print(f"predictions: {folder / 'predictions.pt'}{part}")  # noqa: T201

    def _stop(self, error: ArgumentError) -> NoReturn:
        bug = own_bug(error)
        if isinstance(bug, SyntaxError):
            stop(f"{bug.filename}, line {bug.lineno}: not Python: {bug.msg}")
        if bug:
            raise bug
        parsers = getattr(self, "_subcommand_parsers", {})
        parser = next((parsers[word] for word in self.words if word in parsers), self.parser)
        stop(explain(str(error), parser, self.words))


def _import_from_here(words: Sequence[str]) -> None:
    """Let configs name classes in files of the working folder, and beside the configs."""
    for folder in (Path.cwd(), *(file.resolve().parent for file in config_files(words))):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # at the end: no file there can take the place of what is installed
