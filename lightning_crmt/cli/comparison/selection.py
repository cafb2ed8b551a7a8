# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which of several settings is best on the validation part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from lightning_crmt.checks import did_you_mean
from lightning_crmt.cli.comparison.plan import Select
from lightning_crmt.report import Run


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        place: of the best setting among all; None if none could be judged.
        said: what was chosen among what, as text by the name of the setting.
        error: why none could be judged.
    """

    place: int | None
    said: Mapping[str, str]
    error: str = ""


def choose(select: Select, settings: Sequence[Mapping[str, str]], runs: Sequence[Sequence[Run]]) -> Choice:
    """The setting with the best mean over seeds; of equal ones the first.

    A setting is judged if its runs with all seeds have the number; never by a test part, which these runs do not have.

    Args:
        select: by which number.
        settings: as text by name, each of the same names.
        runs: of each setting one per seed.

    >>> runs = [[Run("crmt", "mfeat", 0, {"val/accuracy/joint": number})] for number in (0.7, 0.9)]
    >>> choose(Select("val/accuracy/joint"), [{"rho": "0.1"}, {"rho": "0.3"}], runs)
    Choice(place=1, said={'rho': '0.3 of 0.1, 0.3 by val/accuracy/joint'}, error='')
    """
    means = [_mean(select.key, of_setting) for of_setting in runs]
    judged = [place for place, value in enumerate(means) if not math.isnan(value)]
    failed = len(settings) - len(judged)
    if not judged:
        return Choice(None, {}, _reason(select, [run for of_setting in runs for run in of_setting]))
    best = (max if select.mode == "max" else min)(judged, key=lambda place: means[place])
    by = f"by {'the least ' * (select.mode == 'min')}{select.key}{f', {failed} failed' * bool(failed)}"
    among = {name: dict.fromkeys(setting[name] for setting in settings) for name in settings[0]}
    said = {name: f"{settings[best][name]} of {', '.join(texts)} {by}" for name, texts in among.items()}
    return Choice(best, said)


def _mean(key: str, runs: Sequence[Run]) -> float:
    if any(run.error or key not in run.numbers for run in runs):
        return math.nan
    return mean(run.numbers[key] for run in runs)


def _reason(select: Select, runs: Sequence[Run]) -> str:
    if errors := [run.error for run in runs if run.error]:
        return f"none of the settings could be judged: {errors[0]}"
    known = sorted(runs[0].numbers)
    near = did_you_mean(select.key, known) or f", which has {', '.join(known[:8])}"
    return f"`select.key` must be a number of the validation part, got {select.key}{near}"
