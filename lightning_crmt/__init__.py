# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Robust multi-modal classifiers for PyTorch Lightning, and honest numbers about their robustness."""

from typing import TYPE_CHECKING, Any

from lightning_crmt.certification import Certificate, Soundness, certify
from lightning_crmt.fusion import LinearFusion, OrthogonalFusion
from lightning_crmt.lipschitz import LipschitzConstants, estimate_lipschitz
from lightning_crmt.losses import MarginRegularization, integration_objective, margin_regularization
from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.version import __version__

if TYPE_CHECKING:
    from lightning_crmt.module import CRMTMixin, CRMTModule

__all__ = [
    "CRMTMixin",
    "CRMTModule",
    "Certificate",
    "FusionOutput",
    "Inputs",
    "LinearFusion",
    "LipschitzConstants",
    "MarginRegularization",
    "OrthogonalFusion",
    "Soundness",
    "__version__",
    "certify",
    "estimate_lipschitz",
    "integration_objective",
    "margin_regularization",
]


def __getattr__(name: str) -> Any:
    # Only these two need lightning: whoever uses the losses or certificates in a plain loop need not load it.
    if name in ("CRMTMixin", "CRMTModule"):
        from lightning_crmt import module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
