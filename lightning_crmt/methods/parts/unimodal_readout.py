# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Where a method reads the logits of each modality alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, as_vectors
from lightning_crmt.training import Method

#: ``"separate"``: linear heads that exist for the fit alone; ``"own"``: the uni-modal logits of the module's own head.
Readout: TypeAlias = Literal["separate", "own"]


class AuxiliaryHead(nn.Linear):
    """A linear classifier that is trained with a module without affecting its output.

    It stays out of the module's state dict: a checkpoint loads into the plain module, with or without the method
    that brought the head.

    >>> AuxiliaryHead(5, 3).state_dict()
    OrderedDict()
    """

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Save nothing."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing, and report nothing as missing."""


class UnimodalReadout:
    """Uni-modal logits during a fit.

    Args:
        heads: where the logits come from.

    Raises:
        ValueError: if ``heads`` is neither of the two.
    """

    def __init__(self, heads: Readout) -> None:
        if heads not in ("separate", "own"):
            raise ValueError(f"`heads` must be 'separate' or 'own', got {heads!r}")
        self.kind: Readout = heads
        #: The heads of the last fit, by modality; their values stay for a checkpoint that is saved after it.
        self.heads = nn.ModuleDict()

    def attach(self, module: CRMTMixin, owner: object) -> None:
        """Give the module fresh heads, if they are separate; before its optimizer exists, that is in ``setup``."""
        if self.kind == "separate":
            sizes, classes = module.head.in_features, module.head.num_classes
            self.heads = nn.ModuleDict({name: AuxiliaryHead(size, classes) for name, size in sizes.items()})
            module.training_stage.push(owner, heads=self.heads)

    def logits(self, module: CRMTMixin, output: FusionOutput, method: Method) -> dict[str, Tensor]:
        """Logits of each modality alone, each ``(B, K)``, with a graph."""
        if self.kind == "own":
            return module.head.unimodal_logits(output.scores)
        if not self.heads:
            raise RuntimeError(f"{type(method).__name__} has its heads within a fit only: add it to a Trainer")
        features = as_vectors(method.features_of(output))
        return {name: head(features[name]) for name, head in self.heads.items()}

    def _values(self) -> dict[str, nn.Parameter]:
        return {f"{kind}_{name}": p for name, head in self.heads.items() for kind, p in head.named_parameters()}

    def state_dict(self) -> dict[str, Tensor]:
        """Values of the separate heads."""
        return {key: value.detach().cpu().clone() for key, value in self._values().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of an interrupted fit.

        Raises:
            ValueError: if they are of other heads.
        """
        values = self._values()
        if not state or not values:
            return
        if values.keys() != state.keys():
            raise ValueError(f"the checkpoint must hold the heads {list(values)}, it holds {list(state)}")
        for key, value in values.items():
            value.data.copy_(state[key])
