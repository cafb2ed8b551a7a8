# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The versions that `make test-lowest` runs are the lowest that setup.cfg allows."""

from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
#: What the tests install, so that its lowest versions can be run; the other extras are `wandb` and `lint`.
EXTRAS = ("test", "plot", "report", "data", "video", "attacks", "transformers", "onnx")


def read(text):
    lines = (line.strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def declared():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {name: read(config["options.extras_require"][name]) for name in EXTRAS}
    return {"": read(config["options"]["install_requires"])} | extras


def lowest(requirements):
    """The lowest version of each name; what is declared twice must be declared alike."""
    found = {}
    for each in requirements:
        versions = [Version(part.version) for part in each.specifier if part.operator in (">=", "==")]
        found.setdefault(canonicalize_name(each.name), set()).update(versions)
    assert all(len(versions) == 1 for versions in found.values()), found
    return {name: versions.pop() for name, versions in found.items()}


def test_lowest_versions_are_those_of_setup_cfg(declared):
    floors = lowest(declared[""] + declared["test"])
    pinned = lowest(read((ROOT / "constraints-lowest.txt").read_text()))
    assert {name: pinned.get(name) for name in floors} == floors


@pytest.mark.parametrize("extra", EXTRAS)
def test_tests_install_every_extra_as_it_is(declared, extra):
    assert {str(each) for each in declared[extra]} <= {str(each) for each in declared["test"]}
