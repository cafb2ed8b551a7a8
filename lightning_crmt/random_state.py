# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The random states that models draw from, as a checkpoint can hold them: tensors and plain Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of Python, NumPy and torch, on the CPU and on ``device``, which is the current one of its kind.

    >>> state = random_state(torch.device("cpu"))
    >>> first = torch.rand(3), random.random()
    >>> set_random_state(state, torch.device("cpu"))
    >>> torch.rand(3).equal(first[0]), random.random() == first[1]
    (True, True)
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy = (name, np.asarray(keys).tolist(), *rest)
    state = {"python": random.getstate(), "numpy": numpy, "cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on from a state; that of a device only where the device is of the same kind."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, random numbers of Python, NumPy and torch begin with a seed; afterwards they go on as before.

    Those of torch on the CPU and on ``device``, which is the current one of its kind.

    >>> with seeded(3, torch.device("cpu")):
    ...     first = torch.rand(3)
    >>> before = torch.get_rng_state()
    >>> with seeded(3, torch.device("cpu")):
    ...     torch.rand(3).equal(first)
    True
    >>> torch.get_rng_state().equal(before)
    True
    """
    state = random_state(device)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # Not `torch.manual_seed`, which begins anew on every device that there is.
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            getattr(torch, device.type).manual_seed(seed)
        yield
    finally:
        set_random_state(state, device)
