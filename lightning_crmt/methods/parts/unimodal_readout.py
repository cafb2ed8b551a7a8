# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Where a method reads what each modality alone would answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_crmt.methods.parts.features import as_vectors, features_of
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, Inputs

#: ``"separate"``: linear heads that exist for the fit alone; ``"own"``: the uni-modal logits of the module's own head.
Readout: TypeAlias = Literal["separate", "own"]


class AuxiliaryHeads(nn.Module):
    """One linear classifier per modality on its features, ``(B, d_m)`` to ``(B, K)``.

    They are trained with the module and are no part of what it answers. So they stay out of its state dict: a
    checkpoint loads into the plain module, with or without the method that brought them.

    Args:
        in_features: size of the features of each modality, by name.
        num_classes: number of classes K.

    >>> import torch
    >>> heads = AuxiliaryHeads({"audio": 5, "image": 6}, num_classes=3)
    >>> heads({"audio": torch.zeros(2, 5), "image": torch.zeros(2, 6)})["image"].shape
    torch.Size([2, 3])
    >>> len(list(heads.parameters())), heads.state_dict()
    (4, OrderedDict())
    """

    def __init__(self, in_features: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        self.names = list(in_features)
        for name, size in in_features.items():
            linear = nn.Linear(size, num_classes)  # for its initialisation
            for kind, parameter in linear.named_parameters():
                self.register_parameter(f"{kind}_{name}", parameter)

    def forward(self, features: Inputs) -> dict[str, Tensor]:
        """Logits of each modality, ``(B, K)``."""
        return {
            name: nn.functional.linear(
                features[name], self.get_parameter(f"weight_{name}"), self.get_parameter(f"bias_{name}")
            )
            for name in self.names
        }

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Nothing."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, and nothing is missing."""


class UnimodalReadout:
    """Uni-modal logits for the time of a fit.

    Separate heads are submodules of the module while it is trained, so that its optimizer, DDP and mixed precision find
    them; they must come before the optimizer exists, that is in ``setup``.

    Args:
        heads: where the logits come from.
        owner: name of the method, so that two methods do not share heads.
    """

    def __init__(self, heads: Readout, owner: str) -> None:
        if heads not in ("separate", "own"):
            raise ValueError(f"`heads` must be 'separate' or 'own', got {heads!r}")
        self.kind: Readout = heads
        self.attribute = f"auxiliary_heads_of_{owner}"
        self.heads: AuxiliaryHeads | None = None

    def attach(self, module: CRMTMixin) -> None:
        """Give the module fresh heads, if they are separate."""
        assert isinstance(module, LightningModule)
        if self.kind == "separate":
            self.heads = AuxiliaryHeads(module.head.in_features, module.head.num_classes)
            module.add_module(self.attribute, self.heads)

    def detach(self, pl_module: LightningModule) -> None:
        """Take them away; their values stay here for a checkpoint that is saved after the fit."""
        if self.heads is not None and pl_module._modules.get(self.attribute) is self.heads:
            delattr(pl_module, self.attribute)

    def logits(self, module: CRMTMixin, output: FusionOutput, method: object) -> dict[str, Tensor]:
        """What each modality alone answers, ``(B, K)``, with a graph."""
        if self.kind == "own":
            return module.head.unimodal_logits(output.scores)
        if self.heads is None:
            raise RuntimeError(f"{type(method).__name__} has its heads within a fit only: add it to a Trainer")
        found: dict[str, Tensor] = self.heads(as_vectors(features_of(output, method)))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Values of the separate heads."""
        if self.heads is None:
            return {}
        return {name: value.detach().cpu().clone() for name, value in self.heads.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of an interrupted fit."""
        if self.heads is None or not state:
            return
        parameters = dict(self.heads.named_parameters())
        if parameters.keys() != state.keys():
            raise ValueError(f"the checkpoint must hold the heads {list(parameters)}, it holds {list(state)}")
        for name, parameter in parameters.items():
            parameter.data.copy_(state[name])
