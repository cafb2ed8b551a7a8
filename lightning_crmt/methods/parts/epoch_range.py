# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The epochs that a method acts in."""

from __future__ import annotations


def within(epoch: int, start_epoch: int, end_epoch: int | None) -> bool:
    """Whether ``epoch`` lies between two, both included; None is the end of training.

    >>> within(3, start_epoch=0, end_epoch=3), within(3, start_epoch=4, end_epoch=None)
    (True, False)
    """
    return start_epoch <= epoch and (end_epoch is None or epoch <= end_epoch)


def check_epochs(start_epoch: int, end_epoch: int | None) -> None:
    """Refuse epochs that no training has.

    Raises:
        ValueError: naming the argument.
    """
    if start_epoch < 0:
        raise ValueError(f"`start_epoch` must be at least 0, got {start_epoch}")
    if end_epoch is not None and end_epoch < start_epoch:
        raise ValueError(f"`end_epoch` must be at least `start_epoch` = {start_epoch}, got {end_epoch}")
