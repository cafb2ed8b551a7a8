# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base of all metrics in this package: a mean over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric
from typing_extensions import override

from lightning_crmt.evaluation import total_and_count
from lightning_crmt.modality import in_double, widened, widest


class SampleMean(Metric):
    """Mean over samples of one value each, from sums in double precision.

    Args:
        settings: the settings by which two metrics of one class differ.
        kwargs: those of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(self, *settings: object, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A MetricCollection takes metrics whose states have the same names and agree on the first batch for the same,
        # and computes only one of them from then on.
        self._state = f"sums of {type(self).__qualname__}{settings}"
        self.add_state(self._state, torch.zeros(2, 1, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        sums = getattr(self, self._state)
        setattr(self, self._state, sums + widened(total_and_count(in_double(values)), sums.device))

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Moves the sums; to a device that has no double precision they go, and stay, in single."""
        device = fn(torch.zeros(0, device=self.device)).device
        if widest(device) is not torch.float64:
            setattr(self, self._state, getattr(self, self._state).float())
            self._defaults[self._state] = torch.as_tensor(self._defaults[self._state]).float()
        return super()._apply(fn, exclude_state)

    @override
    def compute(self) -> Tensor:
        """The mean over all samples so far."""
        total, count = getattr(self, self._state)
        return torch.squeeze(total / count).float()

    @override
    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """The value, or several of them in their order, in a matplotlib figure.

        Args:
            val: a result of ``forward`` or ``compute``, or a list of these; by default that of ``compute`` now.
            ax: matplotlib axes to draw into; new ones by default.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)
