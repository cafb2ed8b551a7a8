# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs in; tables, figures and one page out."""

from lightning_crmt.report.figures import Drawing, figures_of
from lightning_crmt.report.runs import Run, load_runs, save_run

__all__ = ["Drawing", "Run", "figures_of", "load_runs", "save_run"]
