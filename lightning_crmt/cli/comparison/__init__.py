# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods x data x seeds, trained and tested by the very path of ``fit`` and ``test``."""

from lightning_crmt.cli.comparison.command import compare_command
from lightning_crmt.cli.comparison.plan import Comparison, ComparisonError, read_comparison
from lightning_crmt.cli.comparison.runner import compare

__all__ = ["Comparison", "ComparisonError", "compare", "compare_command", "read_comparison"]
