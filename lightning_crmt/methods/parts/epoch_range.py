# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The epochs in which a method acts."""

from __future__ import annotations

import sys

from lightning_crmt.checks import check_at_least


def epoch_range(start_epoch: int, end_epoch: int | None) -> range:
    """The epochs between two, both included; None is the end of training.

    Raises:
        ValueError: naming the argument, for epochs that no training has.

    >>> 3 in epoch_range(0, 3), 3 in epoch_range(4, None)
    (True, False)
    """
    check_at_least(0, start_epoch=start_epoch)
    if end_epoch is not None and end_epoch < start_epoch:
        raise ValueError(f"`end_epoch` must be at least `start_epoch` = {start_epoch}, got {end_epoch}")
    return range(start_epoch, sys.maxsize if end_epoch is None else end_epoch + 1)
