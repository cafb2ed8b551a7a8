# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lightning-crmt``, and the class to make one's own from."""

from lightning_crmt.cli.command_line import CRMTCLI
from lightning_crmt.cli.comparison import Comparison, ComparisonError, compare, read_comparison
from lightning_crmt.cli.main import command_line, main

__all__ = ["CRMTCLI", "Comparison", "ComparisonError", "command_line", "compare", "main", "read_comparison"]
