# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Data files of installed packages, found without importing the packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def installed_file(package: str, path: str) -> Path:
    """Where a file of an installed package is; the package, whose imports may be slow or broken, is not imported.

    Args:
        package: name of a top-level package.
        path: of the file within it, with ``/`` between folders.

    Raises:
        FileNotFoundError: if the package or the file is not there; the message says what to install.

    >>> installed_file("lightning_crmt", "data/mfeat.npz").name
    'mfeat.npz'
    """
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        if (file := Path(folder, path)).is_file():
            return file
    reason = 'there is no such package: pip install "lightning_crmt[data]"'
    if folders:
        reason = f"the package in {folders[0]} has no such file: take another release of it"
    raise FileNotFoundError(f"{package}/{path} is needed, but {reason}")
