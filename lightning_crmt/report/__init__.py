# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs in; tables, figures and one page out."""

from lightning_crmt.report.figures import Drawing, figures_of
from lightning_crmt.report.history import History
from lightning_crmt.report.log_folder import find_runs
from lightning_crmt.report.log_report import log_report
from lightning_crmt.report.logger_output import LoggerOutput, outputs_of
from lightning_crmt.report.planned import NOT_RUN, save_planned, with_missing
from lightning_crmt.report.runs import Run, load_runs, read_run, save_run
from lightning_crmt.report.summary import Summary, summarise
from lightning_crmt.report.write import headline_text, write_report, write_tables

__all__ = [
    "NOT_RUN",
    "Drawing",
    "History",
    "LoggerOutput",
    "Run",
    "Summary",
    "figures_of",
    "find_runs",
    "headline_text",
    "load_runs",
    "log_report",
    "outputs_of",
    "read_run",
    "save_planned",
    "save_run",
    "summarise",
    "with_missing",
    "write_report",
    "write_tables",
]
