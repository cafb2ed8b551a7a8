# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What belongs to one modality alone, and when a method may reach for gradients."""

from __future__ import annotations

from collections import Counter

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from lightning_crmt.checks import describe
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.training import Method, crmt_module


def encoder_parameters(module: CRMTMixin) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each encoder; one that several encoders share is nobody's own, and left out."""
    found = {name: [p for p in encoder.parameters() if p.requires_grad] for name, encoder in module.encoders.items()}
    owners = Counter(id(parameter) for parameters in found.values() for parameter in parameters)
    return {name: [p for p in parameters if owners[id(p)] == 1] for name, parameters in found.items()}


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


def check_modalities_to_compare(module: CRMTMixin, method: Method) -> None:
    """Refuse a module with a single modality.

    Raises:
        ValueError: naming the method.
    """
    if len(module.encoders) < 2:
        raise ValueError(
            f"{type(method).__name__} compares modalities with each other and needs at least 2, "
            f"got {list(module.encoders)}"
        )


def check_steps_in_reach(trainer: Trainer, pl_module: LightningModule, method: Method) -> None:
    """Refuse what does not show whole gradients before, or whole parameters after, every step.

    Raises:
        ValueError: under manual optimization, where a step need not follow its training batch.
        RuntimeError: under a strategy that shards parameters.
    """
    module = crmt_module(pl_module, method)
    assert isinstance(module, LightningModule)
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(method).__name__} acts on the optimizer steps that Lightning makes: `automatic_optimization` "
            "must be True, got False"
        )
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise RuntimeError(
            f"{type(method).__name__} reads whole parameters and gradients, which every process has on a single "
            f"device and under DDP, got {describe(trainer.strategy)}"
        )
