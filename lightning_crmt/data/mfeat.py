# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""UCI Multiple Features: handwritten digits in six views, shipped with the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch

from lightning_crmt.data.module import MultimodalDataModule, MultimodalDataset
from lightning_crmt.data.read.scaling import standardised
from lightning_crmt.data.read.splits import stratified_split
from lightning_crmt.data.settings import chosen

#: Number of features of each view.
VIEWS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}


class UCIMultiFeatures(MultimodalDataModule[MultimodalDataset]):
    r"""2,000 handwritten digits, 10 classes, in up to six views: a real multi-modal problem that trains in seconds.

    Split 60 / 20 / 20 into training, validation and test, stratified by class, by ``seed``. Each feature is
    standardised with mean and deviation of the training part, then each view is divided by the square root of its
    dimension :math:`d_m`, so that the mean squared norm of a view is 1 and radii of different views compare:

    .. math:: x = (v - \mu) / (\sigma \sqrt{d_m})

    Data: R. Duin, UCI Machine Learning Repository, doi 10.24432/C5HC70, CC BY 4.0.

    Args:
        views: names among ``fac`` (216 profile correlations), ``fou`` (76 Fourier coefficients), ``kar`` (64
            Karhunen-Loeve coefficients), ``mor`` (6 morphological features), ``pix`` (240 pixel averages) and ``zer``
            (47 Zernike moments). The pair ``fou``, ``mor`` leaves the most room for a better method.
        **loading: ``batch_size``, ``num_workers`` and ``seed``, see ``MultimodalDataModule``.

    Raises:
        ValueError: if a view is unknown or named twice, or a setting is out of range.

    >>> data = UCIMultiFeatures(views=("fou", "mor"))
    >>> data.in_features, data.num_classes
    ({'fou': 76, 'mor': 6}, 10)
    >>> data.setup()
    >>> {name: len(part) for name, part in data.parts.items()}
    {'train': 1200, 'val': 400, 'test': 400}
    """

    num_classes = 10

    def __init__(self, views: Sequence[str] = ("fou", "mor"), **loading: Any) -> None:
        super().__init__(**loading)
        self.views = chosen("views", views, VIEWS)

    @property
    def in_features(self) -> dict[str, int]:
        """Number of features of each chosen view."""
        return {view: VIEWS[view] for view in self.views}

    def load(self) -> dict[str, MultimodalDataset]:
        """Read, split and scale the chosen views."""
        with as_file(files("lightning_crmt.data") / "mfeat.npz") as path, np.load(path) as archive:
            target = torch.from_numpy(archive["label"].astype(np.int64))
            raw = {view: torch.from_numpy(archive[view]) for view in self.views}
        parts = stratified_split(target, (0.6, 0.2, 0.2), torch.Generator().manual_seed(self.seed))
        inputs = {
            view: (standardised(value, parts[0], over=(0,)) / math.sqrt(VIEWS[view])).float()
            for view, value in raw.items()
        }
        return {
            name: MultimodalDataset({view: value[rows] for view, value in inputs.items()}, target[rows])
            for name, rows in zip(("train", "val", "test"), parts, strict=True)
        }
