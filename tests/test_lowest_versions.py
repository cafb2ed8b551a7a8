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
#: What the tests install, so that its lowest versions can be run; the others are `wandb`, `docs`, `lint`.
EXTRAS = ("test", "plot", "report", "data", "video", "attacks", "transformers", "onnx")


def read(text):
    lines = (line.strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def declared():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {name: resolved(name, config["options.extras_require"]) for name in (*EXTRAS, "all", "wandb")}
    return {"": read(config["options"]["install_requires"])} | extras


def resolved(extra, written):
    """What an extra installs, where extras name each other."""
    found = []
    for each in read(written[extra]):
        ours = each.name == "lightning_crmt"
        found += [more for name in sorted(each.extras) for more in resolved(name, written)] if ours else [each]
    return found


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


def test_extras_name_each_other_and_repeat_nothing(declared):
    """But for a bound of the package itself that an extra makes narrower."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    written = [each.name for lines in config["options.extras_require"].values() for each in read(lines)]
    twice = {name for name in written if written.count(name) > 1}
    assert twice <= {"lightning_crmt"}
    assert all(each.specifier for requirements in declared.values() for each in requirements)


def test_all_is_every_extra_that_users_have(declared):
    users = set(EXTRAS) - {"test"} | {"wandb"}
    assert {str(each) for each in declared["all"]} == {str(each) for name in users for each in declared[name]}
