# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What users write passes the strict type checker against the installed wheel, and runs."""

import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from support.distributions import ROOT, build_distributions

pytestmark = pytest.mark.slow

CODE = ROOT / "tests" / "typing" / "user_code.py"


@pytest.fixture(scope="module")
def users_python(tmp_path_factory):
    """An environment that holds the wheel, and all else from the one the tests run in."""
    folder = tmp_path_factory.mktemp("user")
    (wheel,) = build_distributions(folder, "--wheel").iterdir()
    venv.create(folder / "env", symlinks=True)
    (site,) = folder.glob("env/lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env" / "bin" / "python"


def test_code_of_users_passes_strict_mypy(users_python, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user_code.py").write_text(CODE.read_text())  # away from the checkout, whose package it would find
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", users_python]
    done = subprocess.run([*command, "user_code.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_code_of_users_runs(users_python, tmp_path):
    done = subprocess.run([users_python, CODE], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
