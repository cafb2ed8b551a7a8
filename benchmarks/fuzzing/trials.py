# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Trials: draw a model, let something happen to it, certify it, and hold the certificate against the truth."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fuzzing import exact
from fuzzing.changes import CODES, HARMLESS, changed_state
from fuzzing.exact import TOLERANCE, Reference, Threat
from fuzzing.nets import (
    Draw,
    Shape,
    in_units,
    inputs_of,
    model_of,
    ready_made,
    residual,
    scales,
    sequence,
    shrink_head,
    vary_weights,
    with_features,
)
from fuzzing.own_layers import own_layer
from lightning_crmt import (
    Certificate,
    CRMTModule,
    FixedFusion,
    LinearFusion,
    Soundness,
    encoder_bounds,
    with_fixed_weights,
)
from lightning_crmt.callbacks import CertifiedRobustness
from lightning_crmt.certification import certify_late_fusion
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.layers import GroupSort, OrthogonalLinear

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, torch.float32, *HALVES)
BATCHES = (1, 7, 64)
#: What a gate says that refuses.
REFUSALS = (ValueError, TypeError)


@dataclass
class Violation:
    """A certificate that is wrong, and all that is needed to see it again."""

    kind: str
    what: str
    sample: int
    claimed: float
    true: float
    seed: int
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.what}: sample {self.sample}, claimed {self.claimed:.9g}, true at most "
            f"{self.true:.9g}; repeat with --repeat {self.seed}:{self.kind}; {dict(self.settings)}"
        )


@dataclass
class Outcome:
    """What a trial found.

    Attributes:
        kind: of the model.
        precision: that it ran in.
        certificates: number of samples whose certificates were compared, in each of ``comparisons``.
        comparisons: claims compared with the truth: a sample's radius for one threat is one.
        probes: perturbed inputs at the edge of rigorous certificates that were run.
        ratio: largest certified radius over the true one.
        refused: the message of the gate, if it refused.
        violations: at most one for each sort of claim.
        wrong: number of claims that are wrong.
    """

    kind: str
    precision: str = ""
    certificates: int = 0
    comparisons: int = 0
    probes: int = 0
    ratio: float = 0.0
    refused: str | None = None
    error: str | None = None
    violations: list[Violation] = field(default_factory=list)
    wrong: int = 0


class Trial:
    """One model, one batch, one certificate.

    Args:
        kind: a name in ``KINDS``.
        seed: of everything that is drawn.
        gently: see :class:`~fuzzing.nets.Draw`.
        shrink: what sensitivities are multiplied by; below 1, certificates are wrong on purpose.
    """

    def __init__(self, kind: str, seed: int, *, gently: bool = False, shrink: float = 1.0) -> None:
        self.kind = kind
        self.seed = seed
        self.shrink = shrink
        self.draw = Draw(seed, gently)
        self.outcome = Outcome(kind)

    def run(self) -> Outcome:
        """Draw, certify, judge."""
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            KINDS[self.kind](self)
        return self.outcome

    # Certifying.

    def certified(self, make: Callable[[], Certificate]) -> Certificate | None:
        """A certificate, unless it is refused."""
        try:
            certificate = make()
        except REFUSALS as error:
            self.outcome.refused = str(error)
            return None
        if not certificate.soundness.certified:
            self.outcome.refused = "estimated"
            return None
        if self.shrink != 1.0:  # wrong on purpose: to see that it is found
            slopes = {name: slope * self.shrink for name, slope in certificate.sensitivities.items()}
            certificate = copy.copy(certificate)
            object.__setattr__(certificate, "sensitivities", slopes)
        self.outcome.certificates += len(certificate.prediction)
        return certificate

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        self.outcome.precision = str(dtype).removeprefix("torch.")
        self.draw.note("precision", self.outcome.precision)
        return dtype

    # Judging.

    def violated(self, what: str, wrong: Tensor, claimed: Tensor, true: Tensor) -> None:
        count = int(wrong.sum())
        if not count:
            return
        self.outcome.wrong += count
        excess = torch.where(wrong, claimed / true.clamp(min=1e-300), -1.0).nan_to_num(0.0, posinf=1e300)
        worst = int(excess.argmax())
        self.outcome.violations.append(
            Violation(self.kind, what, worst, float(claimed[worst]), float(true[worst]), self.seed, self.draw.settings)
        )

    def runs_as_certified(self, model: nn.Module, inputs: Mapping[str, Tensor], certificate: Certificate) -> None:
        """The clean prediction, in any batch split, as the model runs."""
        model.eval()
        open_ = certificate.radius().double() > 0
        count = len(open_)
        changed = torch.zeros(count, dtype=torch.bool)
        for size in (count, *BATCHES):
            # Small batches take long: the last samples lie on a boundary, where it matters.
            rows = torch.arange(count)[-min(count, 20 * size) :]
            for part in rows.split(size):
                with torch.no_grad():
                    try:
                        logits = model({name: value[part] for name, value in inputs.items()}).logits
                    except (RuntimeError, ValueError):
                        changed[part] = True  # it cannot even run in this split
                        continue
                answer = logits.argmax(dim=1)
                changed[part] |= (answer != certificate.prediction[part]) | ~logits.isfinite().all(dim=1)
        zero = torch.zeros(count, dtype=torch.float64)
        self.outcome.comparisons += count
        self.violated("the clean prediction changes as it runs", changed & open_, certificate.radius().double(), zero)

    def stays_finite(
        self, model: nn.Module, inputs: Mapping[str, Tensor], certificate: Certificate, reference: Reference
    ) -> None:
        """An input within the radius for which logits are not finite, as the model runs, is no prediction."""
        names = list(certificate.sensitivities)
        radius = certificate.radius().double()
        inside = (radius > 0) & radius.isfinite()
        if not bool(inside.any()):
            return
        radius = torch.where(inside, radius, 0.0) * (1 - 1e-2)
        threat = Threat(tuple(names))
        wide = {name: value.double() for name, value in inputs.items()}
        rival = certificate.nearest_class()
        _, slopes = reference.slopes(wide, certificate.prediction, rival)
        directions = [slopes, {n: -s for n, s in slopes.items()}, {n: torch.randn_like(v) for n, v in wide.items()}]
        for direction in directions:
            unit = exact.times(direction, radius / threat.size(direction).clamp(min=1e-300))
            moved = {n: (value + unit[n]).to(inputs[n].dtype) for n, value in wide.items()}
            within = threat.size({n: moved[n].double() - value for n, value in wide.items()}) <= radius * 1.005
            with torch.no_grad():
                lost = ~model(moved).logits.isfinite().all(dim=1)
            held = torch.stack([value.isfinite().flatten(1).all(dim=1) for value in moved.values()]).all(dim=0)
            self.violated(
                "logits are not finite inside", lost & held & within & inside, radius, torch.zeros_like(radius)
            )

    def compare(
        self,
        certificate: Certificate,
        threats: list[Threat],
        claims: list[Tensor],
        truths: list[Tensor],
        tolerance: float = TOLERANCE,
    ) -> None:
        """Claims with answers."""
        for threat, claimed, true in zip(threats, claims, truths, strict=True):
            self.outcome.comparisons += len(claimed)
            wrong = (claimed > 0) & (claimed > true * (1 + tolerance))
            ratio = torch.where((claimed > 0) & true.isfinite(), claimed / true, 0.0)
            self.outcome.ratio = max(self.outcome.ratio, float(ratio.nan_to_num(0.0, posinf=torch.inf).max()))
            self.violated(f"{certificate.soundness.name} for {threat}", wrong, claimed, true)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Whatever a trial sets is as it was after it."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.set_num_threads(threads)


def threats_of(draw: Draw, names: list[str], products: int = 2) -> list[Threat]:
    """All modalities, each alone, two of three, and products of balls."""
    found = [Threat(tuple(names))]
    if draw.gently:
        return found + [Threat((name,)) for name in names[1:2]]
    if len(names) > 1:
        found += [Threat((name,)) for name in names]
        found += [Threat(tuple(names[:2]))] if len(names) > 2 else []
        found += [
            Threat(tuple(names), {name: draw.random.uniform(0.1, 1.0) for name in names}) for _ in range(products)
        ]
    return found


def claim(certificate: Certificate, threat: Threat) -> Tensor:
    """The largest t that the certificate says is safe, ``(B,)`` in float64."""
    if threat.shares is None:
        return certificate.radius(list(threat.modalities)).double()
    start = torch.stack([certificate.radius([name]).double() / share for name, share in threat.shares.items()]).amin(
        dim=0
    )
    low, high = torch.zeros_like(start), start.clamp(max=1e30)
    for _ in range(60):
        middle = (low + high) / 2
        safe = certificate.tolerates({name: middle * share for name, share in threat.shares.items()})
        low, high = torch.where(safe, middle, low), torch.where(safe, high, middle)
    return low


# Drawing models.


def shape_of(draw: Draw, largest: int = 40) -> Shape:
    while True:
        axes = draw.among([0, 0, 1, 1, 2])
        if axes == 0:
            shape: Shape = (draw.among([1, 2, 3, 5, 8]),)
        elif axes == 1:
            shape = (draw.among([1, 2, 3, 4]), draw.among([4, 5, 8, 12]))
        else:
            shape = (draw.among([1, 2, 4]), draw.among([3, 4, 6]), draw.among([3, 4, 5]))
        if torch.Size(shape).numel() <= largest:
            return shape


def drawn(
    draw: Draw,
    make: Callable[[str], tuple[nn.Module, Shape, int]],
    count: int,
    *,
    units: bool = True,
    norms: bool = True,
    modalities: Sequence[int] = (1, 1, 2, 2, 3),
) -> tuple[CRMTModule, dict[str, Tensor]]:
    """A model of encoders that ``make`` gives with their input's shape and number of features, and a batch."""
    few = [number for number in modalities if number < 3] if draw.gently else modalities
    names = [f"m{i}" for i in range(draw.note("modalities", draw.among(few)))]
    encoders, sizes, inputs = {}, {}, {}
    classes = draw.note("classes", draw.among([2, 3] if draw.gently else [2, 3, 5]))
    extreme = draw.note("extreme statistics", draw.chance(0.15))
    for name in names:
        encoder, shape, size = make(name)
        vary_weights(draw, encoder, extreme)
        offset, scale = 0.0, 1.0
        if units:
            encoder, offset, scale = in_units(draw, encoder, shape, norms)
        encoders[name], sizes[name] = encoder, size
        inputs[name] = inputs_of(draw, shape, offset, scale, count)
    model = model_of(draw, encoders, sizes, classes)
    if draw.chance(0.15):
        shrink_head(model, draw.note("head times", draw.power(-26, -18) if draw.chance(0.5) else draw.power(-6, 5)))
    return model, inputs


def linear_encoder(draw: Draw) -> tuple[nn.Module, Shape, int]:
    size = draw.among([5, 6, 8])
    shape = shape_of(draw)
    if draw.chance(0.4):
        net, after = sequence(draw, shape, draw.among([0, 1, 2, 4]), linear=True, tight=True)
        return net.append(nn.Flatten()), shape, torch.Size(after).numel()
    net, after = sequence(draw, shape, draw.among([1, 2, 3, 4]), linear=True)
    return with_features(net, after, size), shape, size


def narrow_encoder(draw: Draw) -> tuple[nn.Module, Shape, int]:
    """From one number."""
    if draw.chance(0.2):
        return scales(draw), (1,), 1
    net, after = sequence(draw, (1,), draw.among([1, 2, 3, 5, 7]), linear=False)
    if draw.chance(0.4):
        return with_features(net, after, 1), (1,), 1
    size = draw.among([2, 5])
    return with_features(net, after, size), (1,), size


def any_encoder(draw: Draw) -> tuple[nn.Module, Shape, int]:
    shape = shape_of(draw, 64)
    size = draw.among([4, 6])
    if draw.chance(0.3):
        with contextlib.suppress(ValueError):
            return ready_made(draw, shape, size), shape, size
    net, after = sequence(draw, shape, draw.among([2, 3, 4, 6]), linear=False)
    return with_features(net, after, size), shape, size


def at_the_boundary(draw: Draw, model: nn.Module, inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """More samples, between two of different predictions, as near to where it changes as the precision knows."""
    if draw.gently or any(value.dtype is torch.float16 for value in inputs.values()):
        # Such models are refused, and some convolutions end the process: Conv1d(1, 2, 1, 3, 2, 2) of one number.
        return inputs
    with torch.no_grad():
        prediction = model(inputs).logits.argmax(dim=1)
        one, other = torch.randint(len(prediction), (2, 4 * count)).unbind()
        apart = (prediction[one] != prediction[other]).nonzero().flatten()[:count]
        if not len(apart):
            return inputs
        one, other = one[apart], other[apart]
        low = {name: value[one].double() for name, value in inputs.items()}
        high = {name: value[other].double() for name, value in inputs.items()}
        for _ in range(45):
            middle = {name: (low[name] + high[name]) / 2 for name in low}
            same = model({n: v.to(inputs[n].dtype) for n, v in middle.items()}).logits.argmax(dim=1) == prediction[one]
            for name in low:
                mask = same.reshape(-1, *[1] * (low[name].dim() - 1))
                low[name] = torch.where(mask, middle[name], low[name])
                high[name] = torch.where(mask, high[name], middle[name])
        return {name: torch.cat([value, low[name].to(value.dtype)]) for name, value in inputs.items()}


def cast(
    trial: Trial, model: CRMTModule, inputs: dict[str, Tensor], dtypes: tuple[torch.dtype, ...] = DTYPES
) -> tuple[CRMTModule, dict[str, Tensor]]:
    """In the precision that is drawn, with inputs that it holds."""
    dtype = trial.precision(torch.float64 if trial.draw.gently else trial.draw.among(dtypes))
    if dtype is torch.float16 and any(value.abs().max() > 6e4 for value in inputs.values()):
        dtype = trial.precision(torch.bfloat16)  # what it cannot hold is no input
    model = model.to(dtype)
    return model, {name: value.to(dtype) for name, value in inputs.items()}


def settings_of_torch(draw: Draw) -> None:
    """What users set globally, and a certificate must stand."""
    if draw.chance(0.2) and not draw.gently:
        torch.set_float32_matmul_precision(draw.note("matmul precision", draw.among(["high", "medium"])))
    if draw.chance(0.2):
        torch.set_num_threads(draw.note("threads", draw.among([1, 2])))


def references(model: CRMTModule, change: Callable[[CRMTModule], None] | None = None) -> list[Reference]:
    """The exact functions that a model may be taken for: its weights in float64, or as they are computed when it runs.

    Both, where weights are computed from free parameters: a certificate is wrong if it is wrong for both of them.
    """
    wide = copy.deepcopy(model).double().eval()
    copies = [wide if change is not None else with_fixed_weights(wide)]
    computed = any(hasattr(part, "raw") or hasattr(part, "raw_patch") for part in model.modules())
    computed |= hasattr(model.head, "raw_directions")
    if computed and change is None and next(model.parameters()).dtype is not torch.float64:
        copies.append(with_fixed_weights(model).double().eval())
    found = []
    for each in copies:
        plain = copy.deepcopy(each)
        if change is not None:
            change(each)
            each.eval()
        each.requires_grad_(False)
        reference = Reference(each, plain)
        if change is not None:
            reference.terms *= 100
        found.append(reference)
    return found


def kindest(answers: list[list[Tensor]]) -> list[Tensor]:
    """By threat, the larger of several references' answers."""
    return [torch.stack(each).amax(dim=0) for each in zip(*answers, strict=True)]


def constants_of(draw: Draw, model: CRMTModule, inputs: Mapping[str, Tensor]) -> Any:
    """None, or bounds that were computed before, with or without shapes."""
    how = draw.note("constants", draw.among(["own", "own", "of the shapes", "of any shape"]))
    if how == "own" or draw.gently:
        return None
    shapes = {name: tuple(value.shape[1:]) for name, value in inputs.items()} if how == "of the shapes" else None
    return encoder_bounds(model.encoders, shapes)


def leave_parts_in_training(draw: Draw, model: CRMTModule) -> None:
    if draw.chance(0.3):
        draw.note("in training mode", True)
        for part in model.modules():
            if draw.chance(0.5):
                part.training = True


# Kinds.


def judged(
    trial: Trial,
    model: CRMTModule,
    inputs: dict[str, Tensor],
    answer: Callable[[Reference, dict[str, Tensor], Tensor, list[Threat], list[Tensor]], list[Tensor]],
    *,
    constants: Any = None,
    change: Callable[[CRMTModule], None] | None = None,
    run: bool = True,
    products: int = 2,
) -> None:
    """Certify and compare."""
    draw = trial.draw
    found = references(model, change) if answer is not None else []
    if change is not None:
        change(model)
    names = list(inputs)
    certificate = trial.certified(lambda: model.certify(inputs, constants))
    if certificate is None:
        return
    model.eval()
    if run:
        trial.runs_as_certified(model, inputs, certificate)
    if not found:
        return
    if run:
        trial.stays_finite(model, inputs, certificate, found[0])
    threats = threats_of(draw, names, products)
    claims = [claim(certificate, threat) for threat in threats]
    wide = {name: value.double() for name, value in inputs.items()}
    answers = [answer(reference, wide, certificate.prediction, threats, claims) for reference in found]
    trial.compare(certificate, threats, claims, kindest(answers))


def by_slopes(
    reference: Reference, x: dict[str, Tensor], prediction: Tensor, threats: list[Threat], claims: list[Tensor]
) -> list[Tensor]:
    return exact.affine(reference, x, prediction, threats)


def by_grid(
    reference: Reference, x: dict[str, Tensor], prediction: Tensor, threats: list[Threat], claims: list[Tensor]
) -> list[Tensor]:
    answers = []
    for threat, radius in zip(threats, claims, strict=True):
        if len(threat.modalities) > 2:
            answers.append(exact.searched(reference, x, prediction, threat, radius))
        else:
            points = 1500 if len(threat.modalities) == 1 else 60 if threat.shares is None else 400
            answers.append(exact.on_a_grid(reference, x, prediction, threat, radius, points))
    return answers


def by_search(
    reference: Reference, x: dict[str, Tensor], prediction: Tensor, threats: list[Threat], claims: list[Tensor]
) -> list[Tensor]:
    answers = []
    for index, (threat, radius) in enumerate(zip(threats, claims, strict=True)):
        nearest = exact.searched(reference, x, prediction, threat, radius, directions=2, steps=6)
        if index == 0:
            nearest = torch.minimum(nearest, exact.by_minimum_norm(reference, x, prediction, threat, radius, steps=15))
        answers.append(nearest)
    return answers


def linear(trial: Trial) -> None:
    """Affine encoders: the exact distance is known."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 200 if draw.gently else 900)
    model, inputs = cast(trial, model, inputs)
    inputs = at_the_boundary(draw, model, inputs, 100)
    settings_of_torch(draw)
    try:
        constants = constants_of(draw, model, inputs)
    except REFUSALS as error:
        trial.outcome.refused = str(error)
        return
    leave_parts_in_training(draw, model)
    judged(trial, model, inputs, by_slopes, constants=constants)


def one_dimensional(trial: Trial) -> None:
    """Each input is one number: a dense grid knows the distance."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: narrow_encoder(draw), 15 if draw.gently else 40)
    model, inputs = cast(trial, model, inputs)
    inputs = at_the_boundary(draw, model, inputs, 8)
    settings_of_torch(draw)
    try:
        constants = constants_of(draw, model, inputs)
    except REFUSALS as error:
        trial.outcome.refused = str(error)
        return
    judged(trial, model, inputs, by_grid, constants=constants, products=1)


def small_relu(trial: Trial) -> None:
    """Few ReLUs: their linear regions are counted out."""
    draw = trial.draw
    dimensions = draw.among([(2,), (3,), (1, 1), (1, 2), (2, 1)])
    hidden = {1: 5, 2: 2}[len(dimensions)]
    names = [f"m{i}" for i in range(len(dimensions))]
    classes = draw.note("classes", draw.among([2, 3]))
    encoders: dict[str, nn.Module] = {}
    for name, d in zip(names, dimensions, strict=True):
        net = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        vary_weights(draw, net, extreme=False)
        encoders[name] = net
    draw.note("dimensions", dimensions)
    model = model_of(draw, encoders, dict.fromkeys(names, classes), classes)
    inputs = {name: torch.randn(24, d) for name, d in zip(names, dimensions, strict=True)}
    model, inputs = cast(trial, model, inputs)

    def by_regions(
        reference: Reference, x: dict[str, Tensor], prediction: Tensor, threats: list[Threat], claims: list[Tensor]
    ) -> list[Tensor]:
        plain = reference.model
        weights = {n: [(e[0].weight, e[0].bias), (e[2].weight, e[2].bias)] for n, e in plain.encoders.items()}
        rows, bias = {n: w.detach() for n, w in plain.head.class_weights.items()}, plain.head.bias
        answers = []
        for threat, radius in zip(threats, claims, strict=True):
            if threat.shares is None:
                answers.append(exact.by_regions(reference, weights, rows, bias, x, prediction, threat))
            else:
                answers.append(exact.searched(reference, x, prediction, threat, radius))
        return answers

    judged(trial, model, inputs, by_regions, products=1)


def network(trial: Trial) -> None:
    """Whatever can be composed: the nearest adversarial input that is found."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: any_encoder(draw), 10 if draw.gently else 32)
    model, inputs = cast(trial, model, inputs)
    inputs = at_the_boundary(draw, model, inputs, 8)
    settings_of_torch(draw)
    try:
        constants = constants_of(draw, model, inputs)
    except REFUSALS as error:
        trial.outcome.refused = str(error)
        return
    leave_parts_in_training(draw, model)
    judged(trial, model, inputs, by_search, constants=constants, products=1)


def state(trial: Trial) -> None:
    """Constants first, then a change of the weights, then a certificate with them."""
    draw = trial.draw
    narrow = draw.chance(0.4)
    encoder = narrow_encoder if narrow else linear_encoder
    model, inputs = drawn(draw, lambda name: encoder(draw), 40 if narrow else 400, units=False)
    model, inputs = cast(trial, model, inputs, (torch.float64, torch.float32))
    try:
        constants = constants_of(draw, model, inputs)
        if draw.chance(0.5):
            model.certify(inputs, constants)  # whatever a certificate keeps, it keeps now
        model = changed_state(draw, model)
    except REFUSALS as error:
        trial.outcome.refused = str(error)
        return
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) for name, value in inputs.items()}
    judged(trial, model, inputs, by_grid if narrow else by_slopes, constants=constants, products=1)


def averaged(draw: Draw) -> nn.Sequential:
    """One number of a sequence: its bound is attained, and depends on the length."""
    return nn.Sequential(nn.Conv1d(1, 1, draw.among([1, 1, 3]), padding=0), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def lengths(trial: Trial) -> None:
    """Constants of inputs of one size, used for inputs of another."""
    draw = trial.draw

    def make(name: str) -> tuple[nn.Module, Shape, int]:
        if draw.chance(0.5):
            shape: Shape = (1, draw.among([4, 12, 100]))
            return averaged(draw), shape, 1
        channels = draw.among([1, 2])
        shape = (channels, draw.among([4, 6, 40, 100]))
        net, after = sequence(draw, shape, draw.among([0, 1, 2]), linear=True, limit=400)
        if len(after) == 2:
            net.append(nn.Conv1d(after[0], 3, draw.among([1, 3]), padding=1)).append(nn.AdaptiveAvgPool1d(1))
            return net.append(nn.Flatten()), shape, 3
        size = 3
        return with_features(net, after, size), shape, size

    model, inputs = drawn(draw, make, 60, units=False)
    model, inputs = cast(trial, model, inputs, (torch.float64, torch.float32))
    try:
        constants = encoder_bounds(model.encoders, {name: tuple(v.shape[1:]) for name, v in inputs.items()})
        if draw.chance(0.5):
            model.certify(inputs, constants)
    except REFUSALS as error:
        trial.outcome.refused = str(error)
        return
    longer = draw.note("length times", draw.among([0.5, 0.25, 2, 5, 10]))
    other = {n: torch.randn(60, v.shape[1], max(1, int(v.shape[2] * longer))).to(v) for n, v in inputs.items()}
    with torch.no_grad():
        try:
            model(other)
        except (RuntimeError, ValueError):
            trial.outcome.refused = "not of this length"
            return
    judged(trial, model, other, by_slopes, constants=constants)


def code(trial: Trial) -> None:
    """Something else than the code of its types takes part."""
    draw = trial.draw
    how = draw.note("changed", draw.among(sorted(CODES)))
    narrow = draw.chance(0.3)
    encoder = narrow_encoder if narrow else linear_encoder
    model, inputs = drawn(draw, lambda name: encoder(draw), 40 if narrow else 300, units=False)
    model, inputs = cast(trial, model, inputs, (torch.float64, torch.float32))
    before = draw.chance(0.5)
    try:
        constants = constants_of(draw, model, inputs) if before else None
    except REFUSALS as error:
        trial.outcome.refused = str(error)
        return
    random_or_not = "dropout" in how or "batch" in how
    answer: Any = None if random_or_not else by_grid if narrow else by_slopes
    judged(trial, model, inputs, answer, constants=constants, change=CODES[how], products=1)


def own(trial: Trial) -> None:
    """A layer of a user's own, which reads more than its weights and is another one afterwards."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 100, units=False)
    layer, change = own_layer(draw, draw.power(-0.5, 0.5))
    name = draw.among(list(model.encoders))
    before = draw.chance(0.5)
    model.encoders[name] = nn.Sequential(*((layer, model.encoders[name]) if before else (model.encoders[name], layer)))
    model, inputs = cast(trial, model, inputs, (torch.float64, torch.float32))
    if draw.chance(0.3):
        inputs = {n: torch.zeros_like(value) for n, value in inputs.items()}  # where a wrong factor does not show
    model.eval()
    with contextlib.suppress(*REFUSALS):
        model.certify(inputs)
    if draw.chance(0.8):
        change(draw.power(0.5, 1.5))
    judged(trial, model, inputs, by_slopes, products=1)


def given_in_double(trial: Trial) -> None:
    """Samples in double precision, which a model in single precision rounds: radii are from what was given."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 200, norms=False)
    model, inputs = cast(trial, model, inputs, (torch.float32,))
    model.eval()
    wide = {n: value.double() * (1 + 2.0**-25 * torch.randn(value.shape)) for n, value in inputs.items()}
    found = references(model)
    certificate = trial.certified(lambda: model.certify(wide))
    if certificate is None:
        return
    threats = threats_of(draw, list(wide), 1)
    claims = [claim(certificate, threat) for threat in threats]
    answers = [by_slopes(reference, wide, certificate.prediction, threats, claims) for reference in found]
    trial.compare(certificate, threats, claims, kindest(answers))


def large(trial: Trial) -> None:
    """Numbers near the largest: sums of them overflow on the way in some splits of a batch, and cancel in others."""
    draw = trial.draw
    size = draw.among([64, 200, 512])
    layer = nn.Linear(size, 3, bias=draw.chance(0.3))
    period = draw.among([1, 8, 16, 64])
    signs = torch.where(torch.arange(size) // period % 2 == 0, 1.0, -1.0)
    with torch.no_grad():
        layer.weight.mul_(0.1).add_(signs).mul_(2.0 ** draw.among([40, 55, 60, 63]))
    encoder: nn.Module = nn.Sequential(layer, draw.among([nn.ReLU, nn.Identity])())
    model = CRMTModule({"m0": encoder}, 2, in_features={"m0": 3}, head=LinearFusion).eval()
    shrink_head(model, draw.power(-30, 0))
    inputs = {"m0": torch.randn(64, size).mul(0.1).add(1.0).mul(2.0 ** draw.among([40, 55, 60, 63]))}
    model, inputs = cast(trial, model, inputs, (torch.float32,))
    certificate = trial.certified(lambda: model.certify(inputs))
    if certificate is not None:
        trial.runs_as_certified(model, inputs, certificate)


def everywhere(trial: Trial) -> None:
    """A global hook, of a profiler or another library, on all modules."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 60, units=False)
    model, inputs = cast(trial, model, inputs, (torch.float64, torch.float32))
    constants = None
    with contextlib.suppress(*REFUSALS):
        constants = constants_of(draw, model, inputs)

    def louder(module: nn.Module, args: Any, output: Any) -> Any:
        return 3.0 * output if isinstance(module, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(louder)
    try:
        judged(trial, model, inputs, by_slopes, constants=constants, products=1)
    finally:
        handle.remove()


def harmless(trial: Trial) -> None:
    """What changes nothing: a gate that refuses it refuses too much."""
    draw = trial.draw
    how = draw.note("changed", draw.among(sorted(HARMLESS)))
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 100, units=False)
    model, inputs = cast(trial, model, inputs, (torch.float64, torch.float32))
    HARMLESS[how](model)
    certificate = trial.certified(lambda: model.certify(inputs))
    if certificate is not None:
        trial.runs_as_certified(model, inputs, certificate)


class Plain(nn.Module):
    """Encoders and a head that somebody else put together, their encoders perhaps in a plain dict."""

    def __init__(self, encoders: Any, head: nn.Module) -> None:
        super().__init__()
        self.encoders = encoders
        self.head = head

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


class PlainTimesTen(Plain):
    """And something that nobody told."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        return super().forward({name: 10 * value for name, value in inputs.items()})


def plain(trial: Trial) -> None:
    """Modules that are not of this package."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 100, units=False)
    for name in list(model.encoders):
        if draw.chance(0.5):
            model.encoders[name] = nn.Sequential(nn.Dropout(0.8), model.encoders[name])
    model, inputs = cast(trial, model, inputs, (torch.float64, torch.float32))
    times_ten = draw.note("times ten", draw.chance(0.3))
    holder = draw.note("encoders in", draw.among(["a plain dict", "a ModuleDict"]))
    encoders = dict(model.encoders) if holder == "a plain dict" else model.encoders
    for encoder in model.encoders.values():
        encoder.train(draw.chance(0.5))
    other = (PlainTimesTen if times_ten else Plain)(encoders, model.head)
    if draw.chance(0.8):
        other.eval()
    found = references(model)
    if times_ten:
        for reference in found:
            inner = reference.model
            reference.model = lambda x, inner=inner: inner({n: 10 * v for n, v in x.items()})
            reference.terms *= 100
    constants = None
    if draw.chance(0.4):
        with contextlib.suppress(*REFUSALS):
            constants = encoder_bounds(model.encoders)
    certificate = trial.certified(lambda: certify_late_fusion(other, inputs, constants))
    if certificate is None:
        return
    trial.runs_as_certified(other, inputs, certificate)
    threats = threats_of(draw, list(inputs))
    claims = [claim(certificate, threat) for threat in threats]
    wide = {name: value.double() for name, value in inputs.items()}
    answers = [exact.affine(reference, wide, certificate.prediction, threats) for reference in found]
    trial.compare(certificate, threats, claims, kindest(answers))


def unbatched(trial: Trial) -> None:
    """A batch that a layer takes for one sample with channels."""
    draw = trial.draw
    count = draw.among([4, 6])
    length = draw.among([8, 12])
    first = draw.among(
        [
            nn.Conv1d(count, count, 3, padding=1),
            nn.Sequential(nn.Conv1d(count, count, 3), nn.ReLU()),
            nn.Conv1d(count, count, 1, groups=2),
        ]
    )
    encoder = nn.Sequential(first, nn.Flatten())
    with torch.no_grad():
        features = encoder(torch.zeros(count, length)).shape[1]
    model = model_of(draw, {"m0": encoder}, {"m0": features}, 3)
    model, inputs = cast(trial, model, {"m0": torch.randn(count, length)}, (torch.float64, torch.float32))
    constants = None
    with contextlib.suppress(*REFUSALS):
        if draw.chance(0.7):
            constants = encoder_bounds(model.encoders)
    certificate = trial.certified(lambda: model.certify(inputs, constants))
    if certificate is not None:
        trial.runs_as_certified(model, inputs, certificate)


def dropped(trial: Trial) -> None:
    """Certificates without a modality: exact for affine encoders."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 100 if draw.gently else 400, modalities=(2, 2, 3))
    names = list(inputs)
    model, inputs = cast(trial, model, inputs)
    without = names[-1]
    certificate = trial.certified(lambda: certify_late_fusion(model, inputs, missing=[without]))
    if certificate is None:
        return
    found = references(model)
    for reference in found:
        whole = reference.model

        class Less(nn.Module):
            def forward(self, x: Mapping[str, Tensor], whole: CRMTModule = whole) -> Any:
                output = whole(x)
                scores = {n: s for n, s in output.scores.items() if n != without}
                return (
                    output._replace(logits=whole.head.fuse(scores))
                    if hasattr(output, "_replace")
                    else _with(output, whole.head.fuse(scores))
                )

        reference.model = Less()
    threats = threats_of(draw, names[:-1])
    claims = [claim(certificate, threat) for threat in threats]
    wide = {name: value.double() for name, value in inputs.items()}
    answers = [exact.affine(reference, wide, certificate.prediction, threats) for reference in found]
    trial.compare(certificate, threats, claims, kindest(answers))


def gaps(trial: Trial) -> None:
    """Samples that lack modalities, one of which may be tokens: exact for affine encoders, pattern by pattern."""
    draw = trial.draw
    model, inputs = drawn(draw, lambda name: linear_encoder(draw), 60 if draw.gently else 300, modalities=(2, 2, 3))
    names, count = list(inputs), len(next(iter(inputs.values())))
    tokens = {draw.among(names)} if draw.note("tokens", draw.chance(0.6)) else set()
    for name in tokens:
        size = model.head.in_features[name]
        bags = [nn.EmbeddingBag(9, size, mode=mode) for mode in ("mean", "sum", "max")]
        looked_up = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, size))
        model.encoders[name] = draw.among([*bags, looked_up]).eval()
        vary_weights(draw, model.encoders[name], extreme=False)
    model, inputs = cast(trial, model, inputs)
    inputs |= {name: torch.randint(9, (count, 3)) for name in tokens}
    here = torch.rand(count, len(names)) < 0.7
    here[torch.arange(count), torch.randint(len(names), (count,))] = True
    said = dict(inputs)
    for name, present in zip(names, here.unbind(dim=1), strict=True):
        said[f"{name}.present"] = present
        if name not in tokens:
            noise = (100 * torch.rand_like(inputs[name])).masked_fill(
                present.reshape(-1, *[1] * (inputs[name].dim() - 1)), 0
            )
            said[name] = torch.where(present.reshape(-1, *[1] * (noise.dim() - 1)), inputs[name], noise)
    certificate = trial.certified(lambda: model.certify(said))
    if certificate is None:
        return
    trial.runs_as_certified(model, said, certificate)
    wide = {name: value.double() if name not in tokens else value for name, value in inputs.items()}
    for pattern in here.unique(dim=0):
        rows = (here == pattern).all(dim=1).nonzero().squeeze(1)
        left = [name for name, is_here in zip(names, pattern.tolist(), strict=True) if is_here]
        moving = [name for name in left if name not in tokens]
        if not moving:
            continue
        found = references(model)
        for reference in found:
            _without_others(reference, {name: value[rows] for name, value in wide.items()}, left)
        part = replace(
            certificate,
            prediction=certificate.prediction[rows],
            margins=certificate.margins[rows],
            sensitivities={name: slope[rows] for name, slope in certificate.sensitivities.items()},
        )
        threats = threats_of(draw, moving)
        moved = {name: wide[name][rows] for name in moving}
        answers = [exact.affine(reference, moved, part.prediction, threats) for reference in found]
        trial.compare(part, threats, [claim(part, threat) for threat in threats], kindest(answers))


def _without_others(reference: exact.Reference, rest: Mapping[str, Tensor], left: Sequence[str]) -> None:
    """Make a reference one of the modalities that are given, with the rest as it is, fused from those that are left."""
    whole, sizes = reference.model, reference.sizes

    class Left(nn.Module):
        def forward(self, x: Mapping[str, Tensor]) -> Any:
            output = whole({**rest, **x})
            return output._replace(logits=whole.head.fuse({name: output.scores[name] for name in left}))

    reference.model = Left()
    amounts = {name: value.abs() for name, value in rest.items()}
    reference.sizes = lambda inputs: sizes({**amounts, **inputs})  # type: ignore[assignment]


def _with(output: Any, logits: Tensor) -> Any:
    other = copy.copy(output)
    object.__setattr__(other, "logits", logits)
    return other


def rigorous(trial: Trial) -> None:
    """Proof against rounding: any change of the prediction inside, as the model runs, is wrong."""
    draw = trial.draw
    # One number through a long chain of factors: all samples share the few edges, so many models see more than many
    # samples. What rounds without end here, rounds without parameters.
    chain = draw.note("a chain of factors", draw.chance(0.4) and not draw.gently)

    def make(name: str) -> tuple[nn.Module, Shape, int]:
        nets_without_weights = [] if draw.gently else ["scales", "identity"]
        how = draw.among(["linear", "mlp", "lipschitz", "orthogonal", "residual", *nets_without_weights])
        if chain:
            return scales(draw), (1,), 1
        d, size = draw.among([1, 2, 5, 8]), 5
        if how == "scales":
            return scales(draw), (d,), d
        if how == "identity":
            return nn.Sequential(nn.Dropout(0.5), nn.Flatten()), (d,), d
        nets: dict[str, Callable[[], nn.Module]] = {
            "linear": lambda: nn.Sequential(nn.Linear(d, d), nn.Linear(d, size)),
            "mlp": lambda: MLP(d, size, hidden=(6,)),
            "lipschitz": lambda: LipschitzMLP(d, size, hidden=(4,), scale=draw.among([1.0, 3.0])),
            "orthogonal": lambda: nn.Sequential(OrthogonalLinear(d, d), OrthogonalLinear(d, size)),
            "residual": lambda: nn.Sequential(
                residual(draw, nn.Linear(d, d)), *([GroupSort()] if d % 2 == 0 else []), nn.Linear(d, size)
            ),
        }
        return with_fixed_weights(nets[how]()), (d,), size

    if chain:
        model, inputs = drawn(draw, make, 24, units=False, modalities=(1,))
        # A head that rounds nothing: what it may lose does not hide what the chain loses.
        model.head = LinearFusion({"m0": 1}, 2)
        with torch.no_grad():
            model.head.rows["m0"].copy_(torch.tensor([[1.0], [0.0]]))
            model.head.bias.copy_(torch.tensor([0.0, draw.random.uniform(-1.0, 1.0)]))
    else:
        model, inputs = drawn(draw, make, 60 if draw.gently else 200, norms=False)
    if type(model.head) not in (LinearFusion, FixedFusion):
        model.head = model.head.fixed()
    model, inputs = cast(
        trial, model, inputs, (torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16)
    )
    inputs = at_the_boundary(draw, model, inputs, 20)
    if not chain:
        settings_of_torch(draw)
    certificate = trial.certified(lambda: model.certify(inputs, level="rigorous"))
    if certificate is None:
        return
    if certificate.soundness is not Soundness.RIGOROUS:
        trial.outcome.refused = "not rigorous"
        return
    trial.runs_as_certified(model, inputs, certificate)
    reference = references(model)[0]
    wide = {name: value.double() for name, value in inputs.items()}
    names = list(inputs)
    for threat in [Threat(tuple(names)), *([Threat((name,)) for name in names] if len(names) > 1 else [])]:
        radius = claim(certificate, threat)
        usable = (radius > 0) & (radius < 1e15)
        if not bool(usable.any()):
            continue
        _, slopes = reference.slopes(wide, certificate.prediction, certificate.nearest_class())
        for attempt in range(2 if draw.gently else 4):
            noise = {n: torch.randn_like(slopes[n]) for n in threat.modalities}
            share = 0.0 if attempt < 2 else 0.03
            unit = {
                n: slopes[n] / threat.size(slopes).clamp(min=1e-300).reshape(-1, *[1] * (slopes[n].dim() - 1))
                + share * noise[n]
                for n in threat.modalities
            }
            length = torch.where(usable, radius, 0.0) * (1 - attempt * 1e-8)
            moved = at_the_edge(threat, wide, inputs, unit, length, radius)
            inside = usable & (threat.size({n: moved[n].double() - wide[n] for n in threat.modalities}) <= radius)
            probed(trial, model, moved, certificate, inside, radius, f"RIGOROUS for {threat}, as it runs")


def at_the_edge(
    threat: Threat,
    wide: dict[str, Tensor],
    inputs: dict[str, Tensor],
    unit: dict[str, Tensor],
    length: Tensor,
    radius: Tensor,
) -> dict[str, Tensor]:
    """Inputs in the model's precision just inside of a radius, along a direction."""
    size = threat.size(unit).clamp(min=1e-300)
    moved: dict[str, Tensor] = {}
    for _ in range(12):
        step = exact.times(unit, length / size)
        moved = {n: (w + step[n]).to(inputs[n].dtype) if n in step else inputs[n] for n, w in wide.items()}
        over = threat.size({n: moved[n].double() - wide[n] for n in threat.modalities})
        outside = over > radius
        if not bool(outside.any()):
            break
        # A little more than rounding took us out by.
        length = torch.where(outside, length - 1.5 * (over - radius).clamp(min=0) - length * 1e-9, length).clamp(min=0)
    return moved


def probed(
    trial: Trial,
    model: nn.Module,
    moved: dict[str, Tensor],
    certificate: Certificate,
    inside: Tensor,
    radius: Tensor,
    what: str,
) -> None:
    count = len(inside)
    changed = torch.zeros(count, dtype=torch.bool)
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        for size in (7, 64, count):
            for part in torch.arange(count).split(size):
                with torch.no_grad():
                    logits = model({name: value[part] for name, value in moved.items()}).logits
                changed[part] |= (logits.argmax(dim=1) != certificate.prediction[part]) | ~logits.isfinite().all(dim=1)
            trial.outcome.probes += int(inside.sum())
    with torch.no_grad():
        rows = inside.nonzero().flatten()[:24]
        torch.set_num_threads(1)
        for row in rows.split(1):
            logits = model({name: value[row] for name, value in moved.items()}).logits
            changed[row] |= logits.argmax(dim=1) != certificate.prediction[row]
    torch.set_num_threads(threads)
    trial.violated(what, changed & inside, radius, torch.zeros_like(radius))


class _Truth(Callback):
    """How many samples of each batch really withstand each radius, by the weights around the measurement."""

    def __init__(self, radii: list[float]) -> None:
        self.radii = radii
        self.distances: list[Tensor] = []
        self.before = torch.zeros(0)

    def _distance(self, module: LightningModule, batch: Any) -> Tensor:
        inputs, target = batch
        with torch.inference_mode(False):
            wide = {name: value.double().clone() for name, value in inputs.items()}
            reference = references(module)[0]
            with torch.no_grad():
                prediction = reference(wide).argmax(dim=1)
            distance = exact.affine(reference, wide, prediction, [Threat(tuple(inputs))])[0]
            return torch.where(prediction == target, distance, 0.0)

    def on_test_batch_start(
        self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.before = self._distance(pl_module, batch)

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.distances.append(torch.maximum(self.before, self._distance(pl_module, batch)))


def in_a_trainer(trial: Trial) -> None:
    """`CertifiedRobustness` over batches of several lengths, and with a module that adapts to what it tests."""
    draw = trial.draw
    names = [f"m{i}" for i in range(draw.among([1, 2]))]
    encoders: dict[str, nn.Module] = {}
    for name in names:
        encoders[name] = averaged(draw)
        vary_weights(draw, encoders[name], extreme=False)
    model = model_of(draw, encoders, dict.fromkeys(names, 1), 3)
    how = draw.note("change", draw.among(["one length", "several lengths", "several lengths", "adapts at test time"]))
    lengths = [draw.among([4, 8, 40, 200]) for _ in range(4)] if how == "several lengths" else [12] * 4
    draw.note("lengths", lengths)
    model, _ = cast(trial, model, {}, (torch.float32, torch.float64))
    if how == "adapts at test time":
        base = type(model)

        def test_step(self: CRMTModule, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for encoder in self.encoders.values():
                encoder[0].weight.data.mul_(2.0)
            base.test_step(self, batch, batch_idx, dataloader_idx)

        model.__class__ = type("Adapting", (base,), {"test_step": test_step})
    batches = []
    for length in lengths:
        inputs = {name: torch.randn(24, 1, length).to(next(model.parameters())) for name in names}
        with torch.no_grad():
            batches.append((inputs, model(inputs).logits.argmax(dim=1)))
    first = _Truth([])._distance(model, batches[0])
    middle = float(first[first.isfinite()].median())
    radii = sorted({float(f"{factor * middle:.3g}") for factor in (0.3, 0.7, 1.0, 1.5, 3.0)})
    truth = _Truth(radii)
    trainer = Trainer(
        logger=False,
        accelerator="cpu",
        callbacks=[CertifiedRobustness(radii), truth],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    try:
        (metrics,) = trainer.test(model, DataLoader(batches, batch_size=None), verbose=False)
    except REFUSALS as error:
        trial.outcome.refused = str(error)
        return
    distance = torch.cat(truth.distances)
    claimed = torch.tensor([metrics[f"test/certified_accuracy/joint@{radius:g}"] for radius in radii]).double()
    true = torch.stack([(distance * (1 + TOLERANCE) > radius).double().mean() for radius in radii])
    trial.outcome.certificates += len(distance)
    trial.outcome.comparisons += len(radii)
    trial.violated("certified accuracy", claimed > true + 1e-6, claimed, true)


#: What is drawn, and how often next to the others.
KINDS: dict[str, Callable[[Trial], None]] = {
    "linear": linear,
    "one-dimensional": one_dimensional,
    "small ReLU": small_relu,
    "network": network,
    "rigorous": rigorous,
    "dropped modality": dropped,
    "gaps and tokens": gaps,
    "changed weights": state,
    "other lengths": lengths,
    "changed code": code,
    "layers of one's own": own,
    "given in double": given_in_double,
    "large numbers": large,
    "global hook": everywhere,
    "plain module": plain,
    "unbatched": unbatched,
    "in a trainer": in_a_trainer,
    "harmless": harmless,
}
SHARES = {
    "linear": 10,
    "one-dimensional": 6,
    "small ReLU": 1,
    "network": 5,
    "rigorous": 5,
    "dropped modality": 3,
    "gaps and tokens": 4,
    "changed weights": 6,
    "other lengths": 4,
    "changed code": 6,
    "layers of one's own": 4,
    "given in double": 2,
    "large numbers": 1,
    "global hook": 1,
    "plain module": 3,
    "unbatched": 1,
    "in a trainer": 2,
    "harmless": 2,
}

__all__ = ["KINDS", "SHARES", "Outcome", "Trial", "Violation"]
