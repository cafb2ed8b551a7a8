# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Keep features close to those of encoders that were trained alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import describe
from lightning_crmt.encoding import encoded
from lightning_crmt.methods.parts.by_modality import ByModality, check_by_modality, of_modality
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, Inputs, at_least_single, mean_over
from lightning_crmt.targets import MixedTarget, Target
from lightning_crmt.training import Method


class TeacherFeatures(Method):
    r"""Uni-modal teachers (UMT of Du et al., ICML 2023, arXiv 2305.01233): features follow encoders trained alone.

    .. math:: L = \mathrm{CE}(h, y) + \sum_m \lambda_m \, \frac 1 N \sum_i \lVert z_i^m - t_i^m \rVert_2^2

    with features :math:`z^m` and those of the teacher :math:`t^m`, both ``(B, d_m)``. (``torch.nn.MSELoss`` divides by
    :math:`d_m` as well.) Teachers are copies, frozen, in evaluation mode, on the module's device; they are not part of
    it and are not saved.

    Teachers see the batch as it is at this callback's place in the list: clean if before ``AdversarialTraining``,
    attacked if after it. The callback must come after ``Mixup``, so that they see the mixed batch.

    Args:
        teachers: encoders by modality, for all of them or some.
        checkpoints: paths of Lightning checkpoints by modality, of CRMT modules whose encoder of that name has the
            architecture of the module's own. A file that holds more than tensors and plain Python is refused.
        weight: :math:`\lambda_m`, a number or one by modality, at least 0.

    Raises:
        ValueError: if an argument is out of range, or a modality has no teacher or two; on ``setup``, if it is unknown,
            or the checkpoint does not hold its encoder; in training, if features have different shapes.
        TypeError: if a teacher is not a module.

    >>> method = TeacherFeatures(checkpoints={"audio": "audio.ckpt", "image": "image.ckpt"}, weight=0.1)
    """

    source = "paper"

    def __init__(
        self,
        teachers: Mapping[str, nn.Module] | None = None,
        *,
        checkpoints: Mapping[str, str] | None = None,
        weight: ByModality = 1.0,
    ) -> None:
        self.teachers = dict(teachers or {})
        self.checkpoints = dict(checkpoints or {})
        self.weight = weight
        for name, teacher in self.teachers.items():
            if not isinstance(teacher, nn.Module):
                raise TypeError(f"`teachers[{name!r}]` must be a module, got {describe(teacher)}")
        names = [*self.teachers, *self.checkpoints]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"give one teacher per modality, in `teachers` or `checkpoints`; got {names}")
        if isinstance(weight, Mapping) and set(weight) != set(names):
            raise ValueError(f"`weight` must be a number or hold the modalities with a teacher {names}, got {weight}")
        check_by_modality("weight", weight)
        self.reset()

    @override
    def reset(self) -> None:
        self._frozen: dict[str, nn.Module] = {}
        self._wanted: dict[str, Tensor] = {}
        self._saw_mixture = False

    @override
    def begin(self, module: CRMTMixin) -> None:
        unknown = [name for name in [*self.teachers, *self.checkpoints] if name not in module.encoders]
        if unknown:
            raise ValueError(f"teachers must be of the modalities {list(module.encoders.keys())}, got {unknown}")
        teachers = {name: deepcopy(teacher) for name, teacher in self.teachers.items()}
        for name, path in self.checkpoints.items():
            teachers[name] = _encoder_of_checkpoint(deepcopy(module.encoders[name]), name, path)
        # Ready now: a search for a learning rate trains before ``on_fit_start``.
        trainer = module.trainer
        for name, teacher in teachers.items():
            teacher = trainer.precision_plugin.convert_module(teacher).to(trainer.strategy.root_device)
            self._frozen[name] = teacher.eval().requires_grad_(False)

    @override
    def release(self, pl_module: LightningModule) -> None:
        super().release(pl_module)
        self._frozen, self._wanted = {}, {}

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        with torch.no_grad():
            self._wanted = encoded(self._frozen, inputs)
        self._saw_mixture = isinstance(target, MixedTarget)
        return inputs, target

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        if not self._wanted:
            raise RuntimeError("TeacherFeatures needs `training_batch` before `crmt_loss`: its teachers saw no batch")
        if isinstance(target, MixedTarget) and not self._saw_mixture:
            raise ValueError(
                "TeacherFeatures must come after Mixup: its teachers must see the samples that are trained on"
            )
        features, counted = self.features_of(output), module.training_stage.counted
        losses = []
        for name, wanted in self._wanted.items():
            if isinstance(wanted, Tensor) and counted is not None:
                wanted = wanted[counted]
            if not isinstance(wanted, Tensor) or wanted.shape != features[name].shape:
                raise ValueError(
                    f"the teacher of {name!r} must give features of shape {tuple(features[name].shape)}, as the "
                    f"encoder does, got {describe(wanted)}"
                )
            distance = at_least_single(features[name]) - at_least_single(wanted)
            mean = mean_over(distance.flatten(1).square().sum(dim=1), output.present.get(name))
            losses.append(of_modality(self.weight, name) * mean)
        return torch.stack(losses).sum()


def _encoder_of_checkpoint(encoder: nn.Module, name: str, path: str) -> nn.Module:
    """``encoder`` with the parameters and buffers of the modality in a checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=True).get("state_dict", {})
    prefix = f"encoders.{name}."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    expected = encoder.state_dict()
    if own.keys() != expected.keys() or any(own[key].shape != value.shape for key, value in expected.items()):
        held = {key: tuple(value.shape) for key, value in own.items()} or f"no {prefix}*"
        raise ValueError(
            f"`checkpoints[{name!r}]` must hold an encoder like the module's own, "
            f"{ {key: tuple(value.shape) for key, value in expected.items()} }; {path} holds {held}"
        )
    encoder.load_state_dict(own)
    return encoder
