# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""A batch as the model runs it and in exact arithmetic: what sound certificates rest on.

What ``SOUND`` promises: the clean prediction is that of the model as it runs, in any split of the batch; and no input
within the radius changes the prediction in exact arithmetic. So margins are those of a twin in double precision, and
they count only where every one of them exceeds what rounding can take from it as the model runs: elsewhere the running
prediction cannot be vouched for, and the radius is 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_crmt.certification.certificate import Certificate
from lightning_crmt.certification.exact_twin import ExactTwin
from lightning_crmt.certification.from_outputs import certify, certify_with_errors, fused, names_of
from lightning_crmt.certification.inequality import (
    label_sensitivities,
    margins_of,
    of_answers,
    of_samples,
    own_class,
    row_distances,
    row_lengths,
    sensitivities,
    together,
)
from lightning_crmt.checks import check_batch, check_inputs, describe
from lightning_crmt.frozen_eval import as_taken_by, device_of, evaluating, frozen_eval
from lightning_crmt.fusion import LinearFusion
from lightning_crmt.layers import with_fixed_weights
from lightning_crmt.lipschitz import (
    BOUND_LEVELS,
    LipschitzConstants,
    NoBoundError,
    Precision,
    encoder_bounds,
    encoder_errors,
    encoders_and_head,
    examine,
    fingerprint,
    refuse_compiled,
    refuse_context,
    refuse_flushed_numbers,
    refuse_other_weights,
    refuse_parts_out_of_reach,
    running_error,
    uncompiled,
    wholly_known,
)
from lightning_crmt.modality import (
    FusionOutput,
    Inputs,
    continuous_of,
    in_double,
    logits_of,
    modalities_of,
    present_of,
    where_present,
    with_stand_ins,
)
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import answers


def certify_late_fusion(
    model: nn.Module,
    inputs: Inputs,
    lipschitz: LipschitzConstants | None = None,
    *,
    level: Soundness | str = Soundness.SOUND,
    missing: Collection[str] = (),
    multi_label: bool = False,
) -> Certificate:
    """Certificate of a model's predictions for ``inputs``, in evaluation mode and without autocast.

    Args:
        model: its attributes ``encoders``, by modality, and ``head`` are run as
            ``head({m: encoders[m](inputs[m])})``, which is what is certified. Its own answer, if it has a
            ``forward``, must be the same for these samples, nearby, and with a modality at 0; elsewhere it is not seen.
        inputs: one batch by modality; run on the device and in the precision of the model's parameters. With
            ``"audio.present"`` the certificate of a sample without audio is that of the fusion without its score. A
            modality of integers, such as tokens, stays clean, at level sound; its encoder begins with an embedding.
        lipschitz: estimated constants, for radii that are estimates. Bounds by
            :func:`~lightning_crmt.lipschitz.encoder_bounds` are checked to be of these weights and shapes; they are
            computed anyway, once for weights as they are.
        level: ``SOUND``, or ``RIGOROUS`` to count rounding too: for models in float32 or float64 on the CPU whose
            weights are fixed, see :func:`~lightning_crmt.layers.with_fixed_weights`.
        missing: modalities to certify without, see :func:`~lightning_crmt.certification.certify`.
        multi_label: certify labels, each a yes where its logit is above 0, in place of one class.

    Raises:
        NoBoundError: if an encoder has no bound at this level.
        ValueError: for bounds of other weights or shapes, for models in half precision, and at level rigorous for a
            model that nothing is proved about.
        TypeError: if ``model`` has no encoders or head, or its head is of a type whose code is not known.

    >>> from lightning_crmt.fusion import LinearFusion
    >>> model = nn.Module()
    >>> model.encoders = nn.ModuleDict({"audio": nn.Linear(20, 16), "image": nn.Identity()})
    >>> model.head = LinearFusion({"audio": 16, "image": 30}, num_classes=10)
    >>> model.forward = lambda inputs: model.head({name: f(inputs[name]) for name, f in model.encoders.items()})
    >>> inputs = {"audio": torch.randn(2, 20), "image": torch.randn(2, 30)}
    >>> certify_late_fusion(model, inputs).soundness, certify_late_fusion(model, inputs, level="rigorous").soundness
    (<Soundness.SOUND: 2>, <Soundness.RIGOROUS: 3>)
    """
    level = Soundness.among(BOUND_LEVELS, "level", level)
    if level is Soundness.SOUND and lipschitz is not None and not lipschitz.soundness.certified:
        head = encoders_and_head(model)[1]
        with frozen_eval(model), torch.no_grad():
            output = model(as_taken_by(model, inputs))
            return certify(output, head, lipschitz, missing=missing, multi_label=multi_label)
    evaluation = Evaluation(model, inputs, lipschitz, level=level, multi_label=multi_label)
    if has_forward(model):
        evaluation.refuse_other_code(model, inputs)
    return evaluation.certificate(missing)


class Evaluation:
    """One batch as the model runs it, for certificates with and without some of the modalities.

    Args:
        model: encoders by modality and a head of late fusion, as its attributes; nothing else of it takes part.
        inputs: one batch by modality.
        lipschitz: bounds of these very encoders by ``encoder_bounds``, to be checked; they are computed anyway, once
            for weights as they are.
        level: sound or rigorous.
        multi_label: the model answers labels in place of one class.

    Attributes:
        output: what the head answered.

    Raises:
        NoBoundError: naming an encoder's layer without a bound, or a part that does something else than its type.
        ValueError: for bounds of other weights or shapes, and for models in half precision.
        TypeError: if encoders or head are missing, or the head is of a type whose code is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        lipschitz: LipschitzConstants | None = None,
        *,
        level: Soundness | str = Soundness.SOUND,
        multi_label: bool = False,
    ) -> None:
        self.multi_label = multi_label
        self.level = Soundness.among(BOUND_LEVELS, "level", level)
        refuse_parts_out_of_reach(model)
        if self.level is Soundness.RIGOROUS:
            refuse_compiled(model, "")
        # Inside, as a property may give others in training mode.
        with frozen_eval(model), torch.no_grad(), uncompiled(model) as compiled:
            encoders, head = encoders_and_head(model)
            check_inputs(inputs, encoders.keys())
            whole, present = inputs, present_of(inputs)
            refuse_context(inputs)
            inputs = modalities_of(with_stand_ins(inputs, present))
            given, inputs = inputs, as_taken_by(model, inputs)
            # Certificates may be asked for later: nothing may be the caller's own memory.
            given = {name: value.detach().clone() for name, value in given.items()}
            present = {name: here.to(device_of(model), copy=True) for name, here in present.items()}
            examine(dict(encoders.items()), head)
            _refuse_integers(given, self.level)
            refuse_flushed_numbers()
            #: A copy: certificates without some modalities may be asked for later.
            self.head = copy.deepcopy(head)
            fingerprints = {name: fingerprint(encoder) for name, encoder in encoders.items()}
            # Tokens stay clean.
            shapes = {name: tuple(value.shape[1:]) for name, value in continuous_of(inputs).items()}
            _refuse_other(lipschitz, self.level, {name: fingerprints[name] for name in shapes}, shapes)
            # Before anything runs: in half precision, which is refused, some convolutions end the process.
            if self.level is Soundness.RIGOROUS:
                if present:
                    raise ValueError("`inputs` must have all modalities in every sample at level 'rigorous'")
                self.constants = encoder_bounds(encoders, shapes, level=self.level)
                self.errors = encoder_errors(encoders, inputs)
                _refuse_cast(given, inputs)
            else:
                precisions = {name: _precisions_of(encoder, inputs[name]) for name, encoder in encoders.items()}
                of_head = _precisions([*head.directions.values(), head.bias])
            # Of copies, for activations in place: the twin must get the same samples.
            copies = {name: value.clone() for name, value in inputs.items()}
            features = {name: encoder(copies[name]) for name, encoder in encoders.items()}
            self.output = self.head(features, present) if present else self.head(features)
            _refuse_changes_of_shared(modalities_of(whole), inputs, copies)
            if (rows := check_batch("features", features)) != (size := check_batch("inputs", inputs)):
                raise ValueError(f"`encoders` must give a row of features for each of {size} samples, got {rows}")
            if self.level is Soundness.RIGOROUS:
                return
            twin = ExactTwin.of(dict(encoders.items()), head, fingerprints)
            try:
                clean = tuple(name for name in inputs if name not in shapes)
                self.constants = replace(twin.bounds(shapes), clean=clean)
            except NoBoundError as error:
                raise NoBoundError(
                    f"{error}. Without a bound nothing is certified; for radii that are estimates, say so: "
                    "lipschitz=estimate_lipschitz(model, batches)"
                ) from error
            self._exact_head, self._feature_errors = twin.head, {}
            if not wholly_known(head):  # its numbers may be computed in a way of one's own
                refuse_other_weights(with_fixed_weights(head), twin.head, _coarsest(of_head).unit)
            exact: dict[str, Tensor] = {}
            for name, encoder in encoders.items():
                exact[name], self._feature_errors[name] = running_error(
                    encoder,
                    twin.encoders[name],
                    (in_double(given[name].detach()) if name in shapes else given[name]).to(device_of(twin.head)),
                    _coarsest(precisions[name]),
                    twin.layer_bound,
                    _cast_error(given[name], inputs[name]).to(device_of(twin.head)),
                    twin.spreads,
                )
            self._exact_output = self._exact_head(
                exact, {name: here.to(device_of(twin.head)) for name, here in present.items()}
            )
            self.precision = _coarsest(of_head)
            # What rounding takes from margins in the twin, as a share of what it may take in the model as it runs.
            everywhere = [each for part in [*precisions.values(), of_head] for each in part]
            self.share_of_double = max(each.share_of_double for each in everywhere)
        if compiled:
            if not all(map(wholly_known, [*encoders.values(), head])):
                raise NoBoundError(
                    "`model` has layers of your own and parts that were compiled: torch does not notice when such "
                    "layers change; certify it before it is compiled"
                )
            self.refuse_other_code(model, whole)

    def certificate(self, missing: Collection[str] = ()) -> Certificate:
        """The certificate of these predictions, or of those with some modalities dropped from the fusion.

        Raises:
            ValueError: if ``missing`` names unknown modalities, or all.
        """
        missing = names_of(missing)
        if self.level is Soundness.RIGOROUS:
            return certify_with_errors(
                self.output, self.head, self.constants, self.errors, missing=missing, multi_label=self.multi_label
            )
        with torch.no_grad():
            names = list(self.head.in_features)
            present = [name for name in names if name not in missing]
            running = fused(self.output, self.head, names, missing)
            exact = fused(self._exact_output, self._exact_head, names, missing)
            prediction = answers(running, self.multi_label).to(exact.device)
            margins = margins_of(exact, prediction)
            slack = self._slack(prediction, present)
            vouched = (margins > slack) | own_class(prediction, exact.shape[1])
            # The bound of the rounding error was not true, or something else than rounding took part.
            vouched &= (margins_of(in_double(running), prediction) - margins).abs() <= slack
            if not self.multi_label:  # a class is what all margins say together, a label what its own does
                vouched = vouched.all(dim=1, keepdim=True)
            vouched = vouched & running.isfinite().all(dim=1, keepdim=True).to(exact.device)
            # Double precision rounds too: as much less as its unit is smaller.
            margins = torch.where(vouched, margins - slack * self.share_of_double, 0.0)
            slopes = {
                name: where_present(slope + self._lost(name, prediction), self._exact_output.present.get(name))
                if name in present
                else torch.zeros_like(margins)
                for name, slope in of_samples(self._speeds, prediction).items()
            }
        return Certificate(prediction, margins, slopes, Soundness.SOUND, missing)

    def explains(self, logits: Tensor) -> bool:
        """Whether logits ``(B, K)`` are what encoders and head give, at level sound up to rounding."""
        own = self.output.logits
        if logits.shape != own.shape or not torch.equal(logits.isfinite(), own.isfinite()):
            return False
        if self.level is Soundness.RIGOROUS:
            return torch.allclose(logits, own, rtol=0.0, atol=0.0, equal_nan=True)
        exact = self._exact_output.logits
        prediction = answers(own, self.multi_label).to(exact.device)
        off = (margins_of(in_double(logits), prediction) - margins_of(exact, prediction)).abs()
        return not (off > self._slack(prediction, list(self.head.in_features))).any()

    def refuse_other_code(self, model: nn.Module, inputs: Inputs) -> None:
        """Refuse a model that answers something else than encoders and head do, here, nearby, or without a modality.

        Compiled code may be that of a former state: torch keeps hooks that were removed. And a ``forward`` of a user's
        own cannot be examined, only compared.

        Raises:
            ValueError: a ``NoBoundError`` for compiled code.
        """
        noise = torch.Generator().manual_seed(0)
        near = dict(inputs)
        for name, value in continuous_of(inputs).items():
            wide = value.detach().cpu().double()
            moved = wide + wide.std(correction=0).clamp(min=1) * torch.randn(wide.shape, generator=noise).double()
            near[name] = moved.to(value)
        without = [{**inputs, name: torch.zeros_like(value)} for name, value in modalities_of(inputs).items()]
        with uncompiled(model) as compiled:
            evaluate = partial(Evaluation, model, level=self.level, multi_label=self.multi_label)
            evaluations = [(near, evaluate(near))]
            if not compiled:
                evaluations += [(batch, evaluate(batch)) for batch in without]
        for batch, evaluation in [(inputs, self), *evaluations]:
            # As users run it too: code that was compiled with trained parameters is not used with frozen ones.
            with evaluating(model), torch.autocast(device_of(model).type, enabled=False), torch.no_grad():
                as_used = _answer(model, as_taken_by(model, batch))
            if not (evaluation.explains(as_used) and (not compiled or evaluation.explains(_logits(model, batch)))):
                if compiled:
                    raise NoBoundError(
                        "`model` has parts that were compiled, and they compute something else than their code does "
                        "now, as after a hook or a method was changed: call torch.compiler.reset() and run it again"
                    )
                own = evaluation.output.logits
                raise ValueError(
                    "`model` must answer head({m: encoders[m](inputs[m])}) to be certified, also nearby and where a "
                    f"modality is 0, and it answers something else: got {describe(as_used)}"
                    + (f", off by up to {float((as_used - own).abs().max()):.3g}" if as_used.shape == own.shape else "")
                )

    @cached_property
    def _speeds(self) -> dict[str, Tensor]:
        """How fast margins of all pairs can change, ``(K, K)``, or logits of labels, ``(K,)``."""
        of = label_sensitivities if self.multi_label else sensitivities
        return of(self.constants, self._exact_head)

    @cached_property
    def _rows(self) -> dict[str, _Rows]:
        """What certificates with and without some modalities need of the rows of each."""
        exact, running = self._exact_head.class_weights, self.head.class_weights
        directions, weights = self._exact_head.directions, self._exact_head.integration_weights
        gamma, rows = 4 * self.precision.gamma(self._terms), {}
        for name, error in self._feature_errors.items():
            lengths, size = exact[name].norm(dim=1), self._exact_output.features[name].norm(dim=1) + error
            off = gamma * lengths + 4 * (in_double(running[name]) - exact[name]).norm(dim=1)
            longest = directions[name].norm(dim=1).max() * max(1.0, float(weights[name].abs().max()))
            distances = (row_lengths if self.multi_label else row_distances)(exact[name])
            rows[name] = _Rows(lengths, off, distances, size, longest * size < self.precision.largest)
        return rows

    @property
    def _terms(self) -> int:
        return max(self.head.in_features.values()) + len(self.head.in_features) + 4

    def _lost(self, name: str, prediction: Tensor) -> Tensor:
        """What rounding may take from distances of rows, weights times directions, in double precision ``(B, K)``.

        Rows that are equal only because they were rounded are not equal. Products of numbers in single precision are
        exact, and so are those of the weights of a linear head, which are 1.
        """
        rows = self._rows[name].lengths
        exact = self.head.bias.dtype is torch.float32 or isinstance(self.head, LinearFusion)
        constant = self.constants.values[name].to(rows)
        lost: Tensor = (0.0 if exact else 2.0**-50) * constant * together(rows, prediction)
        return lost

    def _slack(self, prediction: Tensor, present: Collection[str]) -> Tensor:
        r"""How far margins may be from exact ones as the model runs, ``(B, K)``.

        .. math:: |\hat m_{pj} - m_{pj}| \le \sum_m \| w_p^m - w_j^m \| e^m + \sum_{k \in \{p, j\}} \Big(
            \gamma |b_k| + \sum_m (\gamma \| w_k^m \| + 4 \| \hat w_k^m - w_k^m \|) (\| z^m \| + e^m) \Big)

        and for a label the same with :math:`w_p = 0` and k = j alone,
        with the errors :math:`e^m` of the features. Where the head computes its rows anew in every pass they come out a
        little different from one machine to another, which the factor 4 is for.
        """
        gamma = 4 * self.precision.gamma(self._terms)
        each = gamma * self._exact_head.bias.abs() + self._terms * self.precision.smallest
        slack = together(each, prediction)
        for name in present:
            rows, error = self._rows[name], self._feature_errors[name]
            part = together(rows.off, prediction) * rows.size[:, None]
            part = part + of_answers(rows.distances, prediction) * error[:, None]
            part = torch.where(rows.finite[:, None], part, math.inf)
            slack = slack + where_present(part, self._exact_output.present.get(name))
        return slack


class _Rows(NamedTuple):
    """Of one modality.

    Attributes:
        lengths: of its rows, weights times directions, ``(K,)``.
        off: what is relative to the features' size, ``(K,)``.
        distances: of the rows from each other, ``(K, K)``; of labels their lengths, ``(K,)``.
        size: of the features, and their error, ``(B,)``.
        finite: where no sum on the way to a score overflows, ``(B,)``.
    """

    lengths: Tensor
    off: Tensor
    distances: Tensor
    size: Tensor
    finite: Tensor


def _refuse_integers(inputs: Inputs, level: Soundness) -> None:
    whole = [name for name, value in inputs.items() if not value.is_floating_point()]
    if whole and (level is Soundness.RIGOROUS or len(whole) == len(inputs)):
        raise ValueError(
            f"`inputs[{whole[0]!r}]` must be floating point to be certified, as radii are distances of real numbers, "
            f"got {inputs[whole[0]].dtype}; cast what is a measurement, such as pixels"
        )


def _refuse_cast(given: Inputs, taken: Inputs) -> None:
    if changed := [name for name in taken if _cast_error(given[name], taken[name]).any()]:
        raise ValueError(
            f"`inputs` must be numbers of the model's precision at level 'rigorous', and those of {', '.join(changed)} "
            "change when they are cast to it"
        )


def _cast_error(given: Tensor, taken: Tensor) -> Tensor:
    """How far samples were moved by casting them, ``(B,)``, in double precision on the CPU."""
    if given.dtype == taken.dtype:
        return torch.zeros(len(taken), dtype=torch.float64)
    moved = taken.cpu().double() - given.detach().cpu().double()
    error: Tensor = torch.linalg.vector_norm(moved.flatten(1), dim=1)
    return error


def _refuse_changes_of_shared(given: Inputs, before: Inputs, after: Inputs) -> None:
    """An activation in place changes the sample that another modality shares its memory with."""
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    if changed and len({value.untyped_storage().data_ptr() for value in given.values()}) < len(given):
        raise NoBoundError(
            f"the encoder of {changed[0]!r}, must not change its inputs in place where modalities share their memory: "
            "what other encoders get would depend on the order"
        )


def has_forward(model: object) -> bool:
    """Whether a module answers by itself, and not only by its parts."""
    return "forward" in vars(model) or getattr(type(model), "forward", None) is not nn.Module.forward


def _logits(model: nn.Module, inputs: Inputs) -> Tensor:
    with frozen_eval(model), torch.no_grad():
        return _answer(model, as_taken_by(model, inputs))


def _answer(model: nn.Module, inputs: Inputs) -> Tensor:
    """Logits that the model answers, or else its head."""
    if has_forward(model):
        return logits_of(model(inputs))
    encoders, head = encoders_and_head(model)
    present = present_of(inputs)
    taken = with_stand_ins(inputs, present)
    output: FusionOutput = head({name: encoder(taken[name]) for name, encoder in encoders.items()}, present)
    return output.logits


def _precisions(tensors: Iterable[Tensor]) -> list[Precision]:
    kinds = dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors)
    return [Precision(dtype, device) for dtype, device in kinds]


def _precisions_of(encoder: nn.Module, x: Tensor) -> list[Precision]:
    """Those of its weights and of what it is given: single numbers do not widen what they multiply."""
    return _precisions([tensor for tensor in (x, *encoder.parameters()) if tensor.is_floating_point()])


def _coarsest(precisions: Iterable[Precision]) -> Precision:
    return max(precisions, key=lambda each: each.unit)


def _refuse_other(
    lipschitz: LipschitzConstants | None,
    level: Soundness,
    fingerprints: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    if lipschitz is None:
        return
    if lipschitz.soundness < level:
        raise ValueError(
            f"`lipschitz` must be {level.name.lower()} at level {level.name.lower()!r}, it is "
            f"{lipschitz.soundness.name.lower()}; leave it out, or take encoder_bounds(encoders, level=...)"
        )
    if lipschitz.fingerprints != fingerprints:
        raise ValueError(
            "`lipschitz` must be bounds of these very encoders, as encoder_bounds gives them, and they are of others: "
            "weights were changed since, or nobody examined the encoders; leave them out, and bounds are computed once "
            "for weights as they are"
        )
    if lipschitz.shapes is not None and lipschitz.shapes != shapes:
        raise ValueError(f"`lipschitz` must be bounds for samples of shapes {shapes}, it is for {lipschitz.shapes}")
