# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Wheel and sdist of the checkout, built from a copy of it."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def build_distributions(folder, *options):
    """Build into ``folder / "dist"``; ``--wheel`` or ``--sdist`` for one alone."""
    source, out = folder / "tree", folder / "dist"
    skipped = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "results", "__pycache__", "lightning_logs")
    shutil.copytree(ROOT, source, ignore=skipped)
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
