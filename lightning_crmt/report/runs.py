# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Finished training runs: what tables, figures and the page are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_crmt.evaluation import Key, read_keys

_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """One training run, finished or failed, with its numbers.

    Attributes:
        method: what the comparison calls this way of training.
        data: what it calls the data.
        seed: of the run.
        numbers: those of the test part, by the text of their :class:`~lightning_crmt.evaluation.Key`.
        history: those of validation and training, by the same text: pairs of an epoch and a number.
        counts: of how many test samples each number is, by the same text, where it is not all, as
            ``Observer.samples`` says it.
        choice: the settings that were chosen on validation, as text by dotted name; empty where nothing was to choose.
        seconds: of fit and test together, by the clock.
        peak_memory: of the process, in bytes; 0 where it is not known.
        parameters: how many numbers were trained.
        samples: how many the test part has; 0 where it is not known.
        threats: what each attack perturbs, by its name, as :func:`~lightning_crmt.callbacks.threats_of` says it;
            accuracy under an attack that is left out is compared to no certificate.
        config: the resolved settings, as YAML.
        config_hash: of settings, data and versions: two runs with the same are the same.
        versions: of Python and the packages, by name.
        error: the reason why there are no numbers; empty for a run that finished.
        command: how to run it again.
        about: what the method is, in a sentence; empty where that is not known.

    >>> run = Run("joint", "mfeat", seed=0, numbers={"test/certified_accuracy/joint@0.2": 0.9})
    >>> run.keys()
    {Key(split='test', what='accuracy', of='joint', radius=0.2, budget=(), sure='certified', loader=None): 0.9}
    """

    method: str
    data: str
    seed: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    choice: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory: int = 0
    parameters: int = 0
    samples: int = 0
    threats: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    config_hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    command: str = ""
    about: str = ""

    def keys(self) -> dict[Key, float]:
        """The numbers by key; those of others, whose names are no keys, are left out."""
        return read_keys(self.numbers)


def save_run(run: Run, folder: str | Path, name: str = _FILE) -> Path:
    """Write a run into a folder of its own; the file appears whole or not at all.

    Args:
        run: what to write.
        folder: made where there is none.
        name: of the file; :func:`load_runs` reads those of the default name alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{name}.part"
    beside.write_text(json.dumps(asdict(run), indent=1, sort_keys=True), encoding="utf-8")
    return beside.replace(folder / name)


def load_runs(folder: str | Path) -> list[Run]:
    """The runs below a folder, in the order of data, method and seed.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file, if one cannot be read.
    """
    files = sorted(Path(folder).rglob(_FILE))
    if not files:
        raise FileNotFoundError(f"`folder` must hold runs, each as a file {_FILE}, got {folder}, which holds none")
    return sorted(map(read_run, files), key=lambda run: (run.data, run.method, run.seed))


def read_run(file: str | Path) -> Run:
    """The run that a file holds.

    Raises:
        ValueError: naming the file, if it holds none.
    """
    try:
        fields: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        history = {key: [(int(at), float(value)) for at, value in each] for key, each in fields["history"].items()}
        return Run(**{**fields, "history": history})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} must hold a run as `save_run` writes it: {error}") from error
