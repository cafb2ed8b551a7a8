# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs in; tables, figures and one page out."""

from lightning_crmt.report.runs import Run, load_runs, save_run

__all__ = ["Run", "load_runs", "save_run"]
