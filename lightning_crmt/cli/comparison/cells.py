# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The cells of a comparison, one for each run, and the keys that tell whether a run is still the same."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from typing_extensions import override

from lightning_crmt.cli.command_line import CRMTCLI
from lightning_crmt.cli.comparison.fingerprint import (
    data_hash,
    own_code_hash,
    package_hash,
    settings_hash,
    versions_of,
)
from lightning_crmt.cli.comparison.plan import CELL, Comparison, ComparisonError, Point

# The same in C, where PyYAML was built with it; ten times as fast.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

#: What a run needs beside the files; the words after them may say otherwise.
_QUIET = ("--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


@dataclass(frozen=True)
class Cell:
    """One run: a method on some data with a seed, and with one of the settings that the method chooses among.

    Attributes:
        method: its name.
        data: its name.
        seed: of everything random.
        choice: the settings among which the method chooses, as text by name; empty where it has no choice.
        words: of ``fit``, with ``{cell}`` for the cell's folder.
        before: words of a fit that goes before, or none.
        ckpt_path: the weights that are measured, as ``Trainer.test`` takes it.
        config: the resolved settings, as YAML.
        depends: hashes of all that the run depends on, by what each is of.
        versions: of the packages.
    """

    method: str
    data: str
    seed: int
    choice: Mapping[str, str]
    words: tuple[str, ...]
    before: tuple[str, ...]
    ckpt_path: str | None
    config: str
    depends: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def key(self) -> str:
        """Names the cell's folder: two cells with the same are the same run."""
        return settings_hash([self.method, self.data, self.seed, dict(self.depends)])[:16]

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.method}/{self.data}/{self.seed}"

    def in_folder(self, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words of the fit and of the one before, for the cell's folder."""
        place = str(folder.resolve())
        words, before = (tuple(word.replace(CELL, place) for word in each) for each in (self.words, self.before))
        return words, before


def cells_of(comparison: Comparison, words: Sequence[str] = (), cli: type[CRMTCLI] = CRMTCLI) -> list[Cell]:
    """All cells, by seed, data and method; every config is parsed, and what cannot be is refused.

    Args:
        comparison: what is compared.
        words: further ones for the command line of each, which win.
        cli: the command line that parses them.

    Raises:
        ComparisonError: a ``ValueError``, for a config that cannot be followed: the method, and what is wrong.
    """
    package, cells = package_hash(), []
    for data in comparison.data:
        for method, settings in comparison.methods.items():
            for point in settings.points:
                made = _Resolved.of(comparison, method, data, point, words, cli, package)
                cells += [made.cell(comparison, method, data, point, seed) for seed in comparison.seeds]
    places = {seed: place for place, seed in enumerate(comparison.seeds)}
    return sorted(cells, key=lambda cell: places[cell.seed])


@dataclass(frozen=True)
class _Resolved:
    """What all seeds have in common."""

    words: tuple[str, ...]
    before: tuple[str, ...]
    config: Mapping[str, Any]
    depends: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls,
        comparison: Comparison,
        method: str,
        data: str,
        point: Point,
        further: Sequence[str],
        cli: type[CRMTCLI],
        package: str,
    ) -> _Resolved:
        settings = comparison.methods[method]
        own = (*_QUIET, f"--trainer.default_root_dir={CELL}")
        words = (*comparison.words_of(method, data, settings.words), *own, *point.words, *further)
        before = (*comparison.words_of(method, data, settings.before), *own, *further) if settings.before else ()
        seed = comparison.of_seed(0)  # whatever the seeds are: adding one leaves the others' cells as they are
        try:
            configs = [resolved((*each, *seed), cli) for each in (words, before) if each]
        except ComparisonError as error:
            raise ComparisonError(
                f"{error}\n  in the method {method!r} on the data {data!r}", "methods", method
            ) from error
        for config in configs:
            _refuse_several_devices(config.get("trainer", {}), method)
        depends = {
            "settings": settings_hash([configs, comparison.seed_keys, comparison.ckpt_path]),
            "data": settings_hash([data_hash(config) for config in configs]),
            "code": settings_hash([package, *(own_code_hash(config, cli) for config in configs)]),
        }
        versions = {name: each for config in configs for name, each in versions_of(config).items()}
        depends["versions"] = settings_hash(versions)
        return cls(words, before, configs[0], depends, versions)

    def cell(self, comparison: Comparison, method: str, data: str, point: Point, seed: int) -> Cell:
        config: Any = deepcopy(self.config)
        for key in comparison.seed_keys:
            place, (*way, last) = config, key.split(".")
            for step in way:
                place = place[step]
            place[last] = seed
        of_seed = comparison.of_seed(seed)
        return Cell(
            method=method,
            data=data,
            seed=seed,
            choice=point.choice,
            words=(*self.words, *of_seed),
            before=(*self.before, *of_seed) if self.before else (),
            ckpt_path=comparison.ckpt_path,
            config=yaml.dump(config, Dumper=_Dumper, sort_keys=False),
            depends=self.depends,
            versions=self.versions,
        )


def resolved(words: Sequence[str], cli: type[CRMTCLI]) -> dict[str, Any]:
    """The settings of ``fit`` that words come to, without making anything of them.

    Raises:
        ComparisonError: if they cannot be followed.
    """

    class Parsed(cli):  # type: ignore[misc, valid-type]
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """None but the one that is parsed: each takes a parser of its own, which takes time."""
            return {"fit": cli.subcommands()["fit"]}

        @override
        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            super().parse_arguments(parser, args)
            text = self._subcommand_parsers["fit"].dump(self.config["fit"], skip_none=False, skip_validation=True)
            raise _ParsedError(yaml.load(text, Loader=_Loader))

    told = io.StringIO()
    try:
        with patch.object(sys, "argv", [cli.prog]), redirect_stderr(told):
            Parsed(["fit", *words])
    except _ParsedError as parsed:
        return parsed.config
    except SystemExit:
        raise ComparisonError(told.getvalue().strip().removeprefix("error: ")) from None
    raise RuntimeError(f"{cli.__name__} did not parse")


class _ParsedError(Exception):
    """Carries parsed settings out of the constructor of a command line."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config


def _refuse_several_devices(trainer: Mapping[str, Any], method: str) -> None:
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if nodes in (1, None) and (devices in ("auto", 1, "1", None) or (isinstance(devices, list) and len(devices) == 1)):
        return
    raise ComparisonError(
        f"`trainer.devices` must be 1 or auto where runs are compared, each of which has a process of its own, "
        f"got {devices!r} on {nodes} nodes, in the method {method!r}",
        "methods",
        method,
    )
