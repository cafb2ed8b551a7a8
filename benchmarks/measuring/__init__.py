# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What the quick benchmarks share: works that take turns, rows of the table in README.md, and the machine."""

from measuring.machine import machine
from measuring.rows import Row, benchmark_parser, load, save, table, write_between
from measuring.turns import Turns, in_turn

__all__ = ["Row", "Turns", "benchmark_parser", "in_turn", "load", "machine", "save", "table", "write_between"]
