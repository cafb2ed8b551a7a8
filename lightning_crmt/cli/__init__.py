# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lightning-crmt``."""

from lightning_crmt.cli.main import command_line, main

__all__ = ["command_line", "main"]
