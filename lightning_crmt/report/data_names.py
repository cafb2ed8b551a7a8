# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What data are called that nobody named: by the class of their module, from the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from lightning_crmt.report.runs import Run

#: The name of data that nobody named.
UNNAMED = "data"


def with_data_named(runs: Sequence[Run]) -> list[Run]:
    """The runs; if nobody named their data, they are called by the class of its module that all share.

    >>> run = Run("joint", UNNAMED, 0, config="data: {class_path: lightning_crmt.data.SpokenDigits}")
    >>> [each.data for each in with_data_named([run, Run("joint", UNNAMED, 1, error="not run yet")])]
    ['SpokenDigits', 'SpokenDigits']
    """
    if any(run.data != UNNAMED for run in runs):
        return list(runs)
    classes = {class_of_data(settings_of(run.config)) for run in runs if run.config}
    name = classes.pop() if len(classes) == 1 else UNNAMED
    return [replace(run, data=name) for run in runs]


def class_of_data(settings: Mapping[str, Any]) -> str:
    """The class of the data module, without where it is from; :data:`UNNAMED` where settings have none."""
    data = settings.get("data")
    path = data.get("class_path") if isinstance(data, dict) else data
    return path.rpartition(".")[2] if isinstance(path, str) and path else UNNAMED


def settings_of(text: str) -> Mapping[str, Any]:
    """What YAML holds; nothing where it cannot be read as keys and values, as with tags of Python."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}
