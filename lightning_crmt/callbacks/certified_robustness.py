# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Certified or estimated radii and their ingredients, in every validation and test epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_crmt.callbacks.certificate_sums import CertificateSums, check_budgets, check_known
from lightning_crmt.callbacks.lost_classes import LostClasses
from lightning_crmt.callbacks.observer import Measurement, Observer, Samples, check_radii
from lightning_crmt.certification import Certificate, certify
from lightning_crmt.checks import describe
from lightning_crmt.evaluation import Key, Reduce
from lightning_crmt.frozen_eval import differentiable, frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import BOUND_LEVELS, LipschitzConstants, label_speeds, margin_speeds
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, logits_of, present_of
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import check_answers, has_labels, least_margin
from lightning_crmt.training import NamedModel, SplitBatch, callbacks_of, crmt_module


class CertifiedRobustness(Observer):
    r"""Logs how robust the predictions are, jointly and per modality; every key says how far to trust it.

    ``constants="sound"`` certifies: it bounds the encoders of a CRMT module layer by layer, and refuses any other
    module and layers without a bound. ``"rigorous"`` also counts rounding, for the few models where that is
    possible. Bounds are tight for encoders that are 1-Lipschitz by construction, such as ``LipschitzMLP``, and loose
    for others.

    ``constants="estimated"`` takes any classifier that has gradients and certifies nothing: the largest gradient of
    each difference of logits over the evaluated samples, :math:`D_{pj}^m = \max_i \| \partial (h_p - h_j) / \partial
    x^m (x_i) \|_2`, a lower bound of the true constant. It costs one backward pass per class and batch, and holds the
    gradients of all classes at once.

    Only modalities of real numbers are perturbed; others, such as tokens, stay clean, as do those that ``modalities``
    leaves out. Then the names of the perturbed ones, joined by ``+``, are in the place of ``joint``. Numbers of one
    modality are over the samples that have it; what a sample lacks cannot change.

    Logged under ``val/`` and ``test/``, with ``joint`` or the name of a modality for *m*, and ``certified`` or
    ``estimated`` for *sure*:

    - ``sure_accuracy/m@r``: share of samples that are right and whose radius exceeds r;
    - ``sure_accuracy_worst_class/joint@r``: the same for the class where it is lowest: what a mean can hide;
    - ``sure_accuracy_of_class/k@r``: the same for each class, where there are at most 32 and all modalities are
      perturbed;
    - ``sure_label_accuracy/m@r``: with several labels per sample, whose accuracy is about all labels of a sample at
      once, the share of labels that are right and whose own radius exceeds r; ``sure_label_accuracy_worst_class``
      and ``sure_label_accuracy_of_class`` as above;
    - ``certified_accuracy_dropped/m@r``, ``certified_radius_dropped/m``: the same when m is missing and its score is
      dropped from the fusion; with bounds only;
    - ``sure_accuracy/m=r+n=s``: share that is right and tolerates these radii of m and n at once;
    - ``sure_radius/m``: mean radius; 0 for a wrong prediction, infinite where no perturbation changes the prediction;
    - ``margin/joint``: mean of :math:`h_y - \max_{j \ne y} h_j`; ``margin/m``: the same of uni-modal scores, where the
      module returns them;
    - ``integration_factor/m``: mean of :math:`c_j^m = \|W_p^m - W_j^m\|`, how much the decision relies on m, where the
      module has a fusion head;
    - ``vulnerability/m``: mean of :math:`\eta_j^m = D_{pj}^m`, how fast a change in m eats up the margin;

    the last two in the scale of the logits, for the class j whose boundary is nearest by the joint bound.

    It warns, once, of classes of 20 samples or more that are right less than a tenth as often as all are: training for
    guarantees may give up a class that is hard to tell apart, and a mean does not show it. It does so in
    ``validate`` and ``test``, of models that are right in at least 0.7 of all samples.

    Args:
        radii: l2 radii, in units of the model's inputs, at which accuracy is logged.
        constants: ``"sound"``, ``"rigorous"`` or ``"estimated"``.
        budgets: radii of several modalities at once, each a mapping of names to radii; one left out stays clean.
        modalities: those that are perturbed; by default all of real numbers.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        split_batch: a function from a batch to ``(inputs, target)``, inputs by name, or its import path, for batches of
            another form; what its inputs hold beside the modalities is handed to the module and never changed.
        every_n_epochs: during a fit, measure at the first validation, then once every n epochs, and in the last epoch;
            ``validate`` and ``test`` always measure.
        max_batches: how many batches of each loader to measure, from the first on; all by default.
        max_samples: how many samples of each loader to measure, evenly spread over it and all processes, each once;
            all by default.

    Raises:
        ValueError: if a radius is negative; on ``setup``, if names are needed and missing.
        TypeError: if bounds are asked for a module that is not a CRMT module, or has no late fusion.
        NoBoundError: a ``ValueError``, at the sanity check if there is one, naming a layer without a bound.

    >>> callback = CertifiedRobustness([0.1, 0.2], constants="estimated", inputs=("image", "audio"))
    """

    def __init__(
        self,
        radii: Sequence[float] = (),
        *,
        constants: Soundness | str = Soundness.SOUND,
        budgets: Sequence[Mapping[str, float]] = (),
        modalities: Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
        split_batch: SplitBatch | str | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
        max_samples: int | None = None,
    ) -> None:
        super().__init__(
            inputs=inputs,
            split_batch=split_batch,
            every_n_epochs=every_n_epochs,
            max_batches=max_batches,
            max_samples=max_samples,
        )
        self.radii = check_radii(radii if isinstance(radii, Sequence) else [radii])
        self.constants = Soundness.among([*BOUND_LEVELS, Soundness.ESTIMATED], "constants", constants)
        self.budgets = check_budgets(budgets)
        if isinstance(modalities, str) or (modalities is not None and not modalities):
            raise ValueError(f"`modalities` must be a list of at least one name, got {modalities!r}")
        self.modalities = None if modalities is None else list(modalities)
        self.warned = False

    def on_certified(self, certificate: Certificate, target: Tensor, samples: Samples) -> None:
        """Called with the certificate of each measured batch, and what is right; does nothing by default."""

    @property
    @override
    def state_key(self) -> str:
        # One of each kind may observe the same fit.
        of = "" if self.modalities is None else f" of {'+'.join(self.modalities)}"
        return f"{type(self).__qualname__}[{self.constants.name.lower()}{of}]"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for each in callbacks_of(trainer, CertifiedRobustness):
            if each.constants is self.constants and each.modalities != self.modalities:
                raise ValueError(
                    f"`modalities` of two CertifiedRobustness at level {self.constants} must be the same, as their "
                    f"numbers have the same names, got {each.modalities} and {self.modalities}"
                )

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        budgeted = [name for budget in self.budgets for name in budget]
        check_known(model.names, budgets=budgeted, modalities=self.modalities or [])
        head = getattr(model.module, "head", None)
        late = head if isinstance(head, LateFusion) and set(head.in_features) == set(model.names) else None
        if self.constants is Soundness.ESTIMATED:
            return _Estimated(self, model, late)
        level = self.constants.name.lower()
        instead = (
            "choose constants='estimated', and what is logged will say so, or SmoothedRobustness, which certifies any "
            "model with a stated probability"
        )
        if not isinstance(model.module, CRMTMixin):
            raise TypeError(
                f"constants={level!r} needs a CRMT module, whose encoders and head can be bounded; got "
                f"{describe(model.module)}: {instead}"
            )
        if not isinstance(head, LateFusion):
            raise TypeError(
                f"constants={level!r} needs late fusion as the module's `head`, as in OrthogonalFusion or "
                f"LinearFusion; got {describe(head)}: {instead}"
            )
        return _Bounded(self, model, late)


class _Certificates(CertificateSums):
    """Sums over the certificates of an evaluation, and over what their margins are made of."""

    def __init__(self, settings: CertifiedRobustness, model: NamedModel, head: LateFusion | None) -> None:
        super().__init__(settings.radii, settings.budgets, model.names)
        self.settings = settings
        self.model = model
        self.head = head
        self.lost: LostClasses | None = None  # of classes, not of labels

    def add(self, certificate: Certificate, output: FusionOutput, target: Tensor) -> None:
        """Add a batch."""
        target = check_answers(target, *certificate.margins.shape[::-1]).to(certificate.prediction.device)
        self.settings.on_certified(certificate, target, self.samples)
        labels = has_labels(target)
        if not labels:
            self.lost = self.lost or LostClasses(certificate.num_classes)
            self.lost.add(certificate.prediction == target, target)
        perturbed = self.perturbed(certificate)
        self.add_certificate(certificate, target, output.present, perturbed)
        self.means.add({Key("", "margin", "joint"): least_margin(output.logits.to(target.device), target)})
        rival = certificate.nearest_class(perturbed)
        everywhere = torch.ones(len(target), dtype=torch.bool, device=target.device)
        for name in self.model.names:
            here = output.present.get(name, everywhere).to(target.device)
            own: dict[Key, Tensor] = {}
            if name in perturbed:
                own[Key("", "vulnerability", name)] = certificate.sensitivities[name].gather(1, rival[:, None])[:, 0]
            if name in output.scores:
                own[Key("", "margin", name)] = least_margin(output.scores[name].to(target.device), target)
            if self.head is not None:
                rows = self.head.class_weights[name].detach().to(target.device)
                factors = rows[rival] if labels else rows[certificate.prediction] - rows[rival]
                own[Key("", "integration_factor", name)] = factors.norm(dim=1)
            self.means.add(own, here[:, None])

    @override
    def compute(self, reduce: Reduce) -> dict[Key, float]:
        # What a fit has not yet learned is not lost.
        if self.lost and not self.settings.warned and self.model.module.trainer.state.fn != TrainerFn.FITTING:
            told = self.lost.told(reduce)
            if told is not None:
                self.settings.warned = True
                rank_zero_warn(f"{told}. Means do not show it, `..._worst_class` does; `ClassFloor` prevents it")
        return super().compute(reduce)

    def perturbed(self, certificate: Certificate) -> list[str]:
        """The modalities that radii are about."""
        chosen = self.settings.modalities or certificate.sensitivities
        named = {*chosen, *(name for budget in self.settings.budgets for name in budget)}
        if clean := [name for name in self.model.names if name in named and name not in certificate.sensitivities]:
            raise ValueError(
                f"`modalities` and `budgets` must name modalities of real numbers, got {clean}, whose values are "
                "integers: these stay clean"
            )
        return [name for name in self.model.names if name in chosen]


class _Bounded(_Certificates):
    """Certifies batch by batch, each on bounds for the shapes of its samples."""

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        evaluation = crmt_module(self.model.module, self.settings).evaluation(inputs, level=self.settings.constants)
        certificate, output = evaluation.certificate(), _detached(evaluation.output)
        self.add(certificate, output, target)
        perturbed = self.perturbed(certificate)
        for name in self.model.names:
            if others := [other for other in perturbed if other != name]:
                dropped = evaluation.certificate([name])
                right = target.to(dropped.prediction.device)
                self.add_dropped(dropped, right, output.present, others, name)


class _Estimated(_Certificates):
    """Keeps the largest gradients, and the outputs of all samples until these are known."""

    def __init__(self, settings: CertifiedRobustness, model: NamedModel, head: LateFusion | None) -> None:
        super().__init__(settings, model, head)
        self.speeds: dict[str, Tensor] = {}
        self.seen: list[tuple[FusionOutput, Tensor, Samples]] = []

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        with frozen_eval(self.model):
            leaves = differentiable(inputs, self.model)
            for name in self.settings.modalities or []:
                if not leaves[name].requires_grad:
                    raise ValueError(
                        f"`modalities` must be of real numbers, got {name!r}, which holds {leaves[name].dtype}"
                    )
            for name, leaf in leaves.items():
                leaf.requires_grad_(leaf.requires_grad and name in (self.settings.modalities or leaves))
            output = self.model(leaves)
            logits = logits_of(output)
            target = check_answers(target, logits.shape[1], len(logits))
            if not logits.requires_grad:
                raise RuntimeError(
                    f"the logits of {describe(self.model.module)} carry no gradient to its inputs: "
                    "something in `forward` detaches them, so their sensitivity cannot be measured"
                )
            batch = (label_speeds if has_labels(target) else margin_speeds)(logits, leaves)
            self.clean = tuple(name for name in self.model.names if not leaves[name].requires_grad)
        for name, speeds in batch.items():
            # A gradient that is not finite bounds nothing: an infinite constant makes every radius 0.
            largest = speeds.amax(dim=0).nan_to_num(nan=torch.inf)
            self.speeds[name] = torch.maximum(self.speeds[name], largest) if name in self.speeds else largest
        of_batch = _detached(output)
        self.seen.append((of_batch._replace(present=of_batch.present or present_of(inputs)), target, self.samples))

    @override
    def compute(self, reduce: Reduce) -> dict[Key, float]:
        speeds = {name: reduce(value, "max") for name, value in self.speeds.items()}
        labels = has_labels(self.seen[0][1])
        of: Literal["margins", "labels"] = "labels" if labels else "margins"
        constants = LipschitzConstants(speeds, of=of, soundness=Soundness.ESTIMATED, clean=self.clean)
        for output, target, samples in self.seen:
            self.samples = samples
            self.add(certify(output, None, constants, multi_label=labels), output, target)
        return super().compute(reduce)


def _detached(output: Any) -> FusionOutput:
    logits = logits_of(output).detach()
    if not isinstance(output, FusionOutput):
        return FusionOutput(logits, {})
    scores = {name: each.detach() for name, each in output.scores.items()}
    return FusionOutput(logits, scores, present=output.present)
