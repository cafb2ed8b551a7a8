# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How robust a checkpoint is: ``lightning-crmt certify`` and ``lightning-crmt attack``."""

from lightning_crmt.cli.robustness.attack import attack_command
from lightning_crmt.cli.robustness.certify import certify_command

__all__ = ["attack_command", "certify_command"]
