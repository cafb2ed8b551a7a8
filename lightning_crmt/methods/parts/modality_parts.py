# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters that belong to one modality alone."""

from __future__ import annotations

from collections import Counter

from torch import nn

from lightning_crmt.mixin import CRMTMixin


def encoder_parameters(module: CRMTMixin) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each encoder; those that several encoders share are left out."""
    trained = {name: [p for p in encoder.parameters() if p.requires_grad] for name, encoder in module.encoders.items()}
    owners = Counter(id(parameter) for parameters in trained.values() for parameter in parameters)
    return {name: [p for p in parameters if owners[id(p)] == 1] for name, parameters in trained.items()}


def head_parts(module: CRMTMixin) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of the head that belong to one modality, by modality and by their name in the head.

    They are those that the head keeps under the modality's name, as in ``nn.ParameterDict`` or ``nn.ModuleDict``.
    """
    parts: dict[str, dict[str, nn.Parameter]] = {name: {} for name in module.encoders}
    for path, parameter in module.head.named_parameters():
        owners = [name for name in parts if name in path.split(".")]
        if len(owners) == 1:
            parts[owners[0]][path] = parameter
    return parts


def own_parameters(module: CRMTMixin) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each modality: those of its encoder and of its part of the head."""
    parts = head_parts(module)
    return {
        name: parameters + [p for p in parts[name].values() if p.requires_grad]
        for name, parameters in encoder_parameters(module).items()
    }
