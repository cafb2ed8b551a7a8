# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Robust multi-modal classifiers for PyTorch Lightning, and honest numbers about their robustness."""

from typing import TYPE_CHECKING, Any

from lightning_crmt.certification import (
    Certificate,
    CertificateViolation,
    Soundness,
    Verification,
    certify,
    verify_certificate,
)
from lightning_crmt.criterion import Criterion
from lightning_crmt.export import export_onnx, export_program, for_inference
from lightning_crmt.fusion import FixedFusion, LinearFusion, OrthogonalFusion
from lightning_crmt.layers import with_fixed_weights
from lightning_crmt.lipschitz import (
    ForwardError,
    LipschitzConstants,
    NoBoundError,
    ProbeSearch,
    encoder_bounds,
    encoder_errors,
    estimate_lipschitz,
    forward_error,
    lipschitz_bound,
    lipschitz_rule,
)
from lightning_crmt.losses import MarginRegularization, integration_objective, margin_regularization
from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.reweighting import keep_scores, reweight
from lightning_crmt.smoothing import Ablation, SmoothedCertificate, SmoothedClassifier, verify_smoothed
from lightning_crmt.version import __version__

if TYPE_CHECKING:
    from lightning_crmt.mixin import CRMTMixin
    from lightning_crmt.module import CRMTModule

__all__ = [
    "Ablation",
    "CRMTMixin",
    "CRMTModule",
    "Certificate",
    "CertificateViolation",
    "Criterion",
    "FixedFusion",
    "ForwardError",
    "FusionOutput",
    "Inputs",
    "LinearFusion",
    "LipschitzConstants",
    "MarginRegularization",
    "NoBoundError",
    "OrthogonalFusion",
    "ProbeSearch",
    "SmoothedCertificate",
    "SmoothedClassifier",
    "Soundness",
    "Verification",
    "__version__",
    "certify",
    "encoder_bounds",
    "encoder_errors",
    "estimate_lipschitz",
    "export_onnx",
    "export_program",
    "for_inference",
    "forward_error",
    "integration_objective",
    "keep_scores",
    "lipschitz_bound",
    "lipschitz_rule",
    "margin_regularization",
    "reweight",
    "verify_certificate",
    "verify_smoothed",
    "with_fixed_weights",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Only these two need lightning: whoever uses the losses or certificates in a plain loop need not load it.
    if name in ("CRMTMixin", "CRMTModule"):
        from lightning_crmt import module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
