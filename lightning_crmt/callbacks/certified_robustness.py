# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Radii and what they are made of, in every validation and test epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.callbacks.observer import Measurement, Observer, Reduce
from lightning_crmt.callbacks.robustness_numbers import RobustnessNumbers
from lightning_crmt.certification import certify, certify_late_fusion
from lightning_crmt.checks import check_target, describe
from lightning_crmt.frozen_eval import differentiable, frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants, encoder_bounds, margin_speeds
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, logits_of
from lightning_crmt.soundness import Soundness
from lightning_crmt.training import NamedModel

#: Where Lipschitz constants come from: bounds of the encoders at a level, or gradients on data.
Constants: TypeAlias = Literal["sound", "rigorous", "estimated"]


class CertifiedRobustness(Observer):
    r"""Logs how robust the predictions are, jointly and per modality; every key says how far to trust it.

    ``constants="sound"`` certifies: it bounds the encoders of a CRMT module layer by layer, and refuses any other
    module and layers without a bound. ``"rigorous"`` also counts rounding, for the few models that it can. Bounds are
    tight for encoders that are 1-Lipschitz by construction, such as ``LipschitzMLP``, and loose for others.

    ``constants="estimated"`` takes any classifier that has gradients and certifies nothing: the largest gradient of
    each difference of logits over the evaluated samples, :math:`D_{pj}^m = \max_i \| \partial (h_p - h_j) / \partial
    x^m (x_i) \|_2`, a lower bound of the true constant. It costs one backward pass per class and batch, and holds the
    gradients of all classes at once.

    Logged under ``val/`` and ``test/``, with ``joint`` or the name of a modality for *m*, and ``certified`` or
    ``estimated`` for *sure*:

    - ``sure_accuracy/m@r``: share of samples that are right and whose radius exceeds r;
    - ``sure_accuracy_worst_class/joint@r``: the same for the class where it is lowest: what a mean can hide;
    - ``sure_accuracy_of_class/k@r``: the same for each class, where there are at most 32;
    - ``certified_accuracy_dropped/m@r``, ``certified_radius_dropped/m``: what is left to the other modalities when m is
      missing and its score is dropped; with bounds only;
    - ``sure_accuracy/m=r+n=s``: share that is right and tolerates these radii of m and n at once;
    - ``sure_radius/m``: mean radius; a wrong prediction counts as 0, and what nothing moves is infinite;
    - ``margin/joint``: mean of :math:`h_y - \max_{j \ne y} h_j`; ``margin/m``: the same of uni-modal scores, where the
      module returns them;
    - ``integration_factor/m``: mean of :math:`c_j^m = \|W_p^m - W_j^m\|`, how much the decision relies on m, where the
      module has a fusion head;
    - ``vulnerability/m``: mean of :math:`\eta_j^m = D_{pj}^m`, how fast a change in m eats up the margin;

    the last two in the scale of the logits, for the class j whose boundary is nearest by the joint bound.

    Args:
        radii: l2 radii, in units of the model's inputs, at which accuracy is logged.
        constants: ``"sound"``, ``"rigorous"`` or ``"estimated"``.
        budgets: radii of several modalities at once, each a mapping of names to radii; one left out stays clean.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        every_n_epochs: in a fit, measure in the first epoch with a validation, then when n epochs have passed, and in
            the last; ``validate`` and ``test`` always measure.
        max_batches: measure the first so many batches of a loader; all by default.

    Raises:
        ValueError: if a radius is negative; on ``setup``, if names are needed and missing.
        TypeError: if bounds are asked of a module that is no CRMT module, or of one without late fusion.
        NoBoundError: a ``ValueError``, at the sanity check if there is one, naming a layer without a bound.

    >>> callback = CertifiedRobustness([0.1, 0.2], constants="estimated", inputs=("image", "audio"))
    """

    def __init__(
        self,
        radii: Sequence[float] = (),
        constants: Constants = "sound",
        budgets: Sequence[Mapping[str, float]] = (),
        inputs: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
    ) -> None:
        super().__init__(inputs=inputs, every_n_epochs=every_n_epochs, max_batches=max_batches)
        self.radii = list(radii) if isinstance(radii, Sequence) else [radii]
        if not all(isinstance(r, int | float) and 0 <= r < math.inf for r in self.radii):
            raise ValueError(f"`radii` must be numbers, at least 0 and finite, got {radii}")
        if len({f"{r:g}" for r in self.radii}) != len(self.radii):
            raise ValueError(f"`radii` must differ in their first six digits, which name the keys, got {radii}")
        if constants not in ("sound", "rigorous", "estimated"):
            raise ValueError(f"`constants` must be 'sound', 'rigorous' or 'estimated', got {constants!r}")
        for budget in budgets:
            if not isinstance(budget, Mapping) or not budget or not all(0 <= r < math.inf for r in budget.values()):
                raise ValueError(f"`budgets` must map names of modalities to radii, at least 0, got {budget}")
        self.constants: Constants = constants
        self.budgets = [dict(budget) for budget in budgets]

    @property
    @override
    def state_key(self) -> str:
        # One of each kind may observe the same fit.
        return f"{type(self).__qualname__}[{self.constants}]"

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        for budget in self.budgets:
            if unknown := [name for name in budget if name not in model.names]:
                raise ValueError(f"`budgets` must name modalities among {model.names}, got {unknown}")
        if self.constants == "estimated":
            return _Estimated(model, self.radii, self.budgets)
        if isinstance(model.module, CRMTMixin):
            if not isinstance(model.module.head, LateFusion):
                raise TypeError(
                    f"constants={self.constants!r} needs late fusion as the module's `head`, as in OrthogonalFusion or "
                    f"LinearFusion; got {describe(model.module.head)}: choose constants='estimated', and what is "
                    "logged will say so"
                )
            return _Bounded(model.module, model.names, self.radii, self.budgets, self.constants)
        raise TypeError(
            f"constants={self.constants!r} needs a CRMT module, whose encoders and head can be bounded; got "
            f"{describe(model.module)}: choose constants='estimated', and what is logged will say so"
        )


class _Bounded(Measurement):
    """Certifies batch by batch, on bounds of the encoders that are computed once."""

    def __init__(
        self,
        module: CRMTMixin,
        names: Sequence[str],
        radii: Sequence[float],
        budgets: Sequence[Mapping[str, float]],
        level: Literal["sound", "rigorous"],
    ) -> None:
        self.module = module
        self.level = level
        self.lipschitz: LipschitzConstants | None = None
        self.numbers = RobustnessNumbers(
            names, radii, budgets, module.head if isinstance(module.head, LateFusion) else None
        )
        absent = names if len(names) > 1 else []
        self.dropped = {name: RobustnessNumbers([], radii, [], None) for name in absent}

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        # The first time without constants: then the module is asked whether they could say anything about it.
        certificate = self.module.certify(inputs, self.lipschitz, level=self.level)
        if self.lipschitz is None:
            shapes = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
            self.lipschitz = encoder_bounds(self.module.encoders, shapes, level=self.level)
        assert isinstance(self.module, torch.nn.Module)
        with frozen_eval(self.module), torch.no_grad():
            output = self.module({n: leaf.detach() for n, leaf in differentiable(inputs, self.module).items()})
        self.numbers.update(certificate, output, target)
        for name, dropped in self.dropped.items():
            without = certify_late_fusion(self.module, inputs, self.lipschitz, level=self.level, missing=[name])
            dropped.update(without, output, target)

    @override
    def compute(self, reduce: Reduce) -> dict[str, float]:
        found = self.numbers.compute(reduce)
        for name, dropped in self.dropped.items():
            for key, value in dropped.compute(reduce).items():
                what, _, where = key.partition("/joint")
                if what in ("certified_accuracy", "certified_radius"):
                    found[f"{what}_dropped/{name}{where}"] = value
        return found


class _Estimated(Measurement):
    """Keeps the largest gradients, and the outputs of all samples until these are known."""

    def __init__(self, model: NamedModel, radii: Sequence[float], budgets: Sequence[Mapping[str, float]]) -> None:
        self.model = model
        head = getattr(model.module, "head", None)
        known = isinstance(head, LateFusion) and set(head.in_features) == set(model.names)
        self.numbers = RobustnessNumbers(model.names, radii, budgets, head if known else None)
        self.speeds: dict[str, Tensor] = {}
        self.seen: list[tuple[FusionOutput | Tensor, Tensor]] = []

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        with frozen_eval(self.model):
            leaves = differentiable(inputs, self.model)
            output = self.model(leaves)
            logits = logits_of(output)
            check_target(target, logits.shape[1], len(logits))
            if not logits.requires_grad:
                raise RuntimeError(
                    f"the logits of {describe(self.model.module)} carry no gradient to its inputs: "
                    "something in `forward` detaches them, so their sensitivity cannot be measured"
                )
            found = margin_speeds(logits, leaves)
        for name, speeds in found.items():
            # A gradient that is not finite bounds nothing: an infinite constant makes every radius 0.
            largest = speeds.amax(dim=0).nan_to_num(nan=torch.inf)
            self.speeds[name] = torch.maximum(self.speeds[name], largest) if name in self.speeds else largest
        kept = logits.detach()
        if isinstance(output, FusionOutput):
            self.seen.append((FusionOutput(kept, {n: s.detach() for n, s in output.scores.items()}), target))
        else:
            self.seen.append((kept, target))

    @override
    def compute(self, reduce: Reduce) -> dict[str, float]:
        speeds = {name: reduce(value, "max") for name, value in self.speeds.items()}
        constants = LipschitzConstants(speeds, of="margins", soundness=Soundness.ESTIMATED)
        for output, target in self.seen:
            self.numbers.update(certify(output, None, constants), output, target)
        return self.numbers.compute(reduce)
