# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""1-Lipschitz layers in the l2 norm, to build encoders whose sound bound is 1, and one that scales."""

from lightning_crmt.layers.fixed_weights import Fixable, with_fixed_weights
from lightning_crmt.layers.one_lipschitz import (
    GroupSort,
    MaxMin,
    Residual,
    Scale,
    ScaledAvgPool1d,
    ScaledAvgPool2d,
    ScaledPad,
)
from lightning_crmt.layers.orthogonal import OrthogonalLinear, kept_rows, orthonormal_rows
from lightning_crmt.layers.orthogonal_conv import OrthogonalConv1d, OrthogonalConv2d
from lightning_crmt.layers.orthogonal_conv_transpose import OrthogonalConvTranspose1d, OrthogonalConvTranspose2d

__all__ = [
    "Fixable",
    "GroupSort",
    "MaxMin",
    "OrthogonalConv1d",
    "OrthogonalConv2d",
    "OrthogonalConvTranspose1d",
    "OrthogonalConvTranspose2d",
    "OrthogonalLinear",
    "Residual",
    "Scale",
    "ScaledAvgPool1d",
    "ScaledAvgPool2d",
    "ScaledPad",
    "kept_rows",
    "orthonormal_rows",
    "with_fixed_weights",
]
