# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The most memory that this process had since the last reset; since its start where the system has no reset."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Forget earlier peaks, on Linux."""
    try:
        _RESET.write_text("5")
    except OSError:
        return  # no Linux, or not allowed


def peak_memory() -> int:
    """In bytes; 0 where it is not known.

    >>> peak_memory() >= 0
    True
    """
    try:
        if found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()):
            return int(found[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # no Unix
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
