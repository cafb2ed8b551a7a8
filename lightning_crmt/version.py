# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The version, alone in its file so that building the package need not import torch."""

__version__ = "0.1.0"
