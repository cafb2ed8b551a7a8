# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How far the nearest other prediction really is: in float64, with a bound of what float64 itself may lose.

Every answer is a distance at which another class surely leads in exact arithmetic, so a certificate beyond it is wrong.
For affine models it is also the smallest such distance; for small ReLU networks too, by their linear regions; for
inputs of one number up to a dense grid. Elsewhere it is the nearest that was found.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_crmt import CRMTModule, FixedFusion, with_fixed_weights
from lightning_crmt.attacks import Budget, MinimumNorm
from lightning_crmt.layers import GroupSort, Residual, Scale

UNIT = 2.0**-53
#: A certificate may exceed an exact answer by so much.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Threat:
    """A set of perturbations for each t >= 0: a ball of radius t, or a product of balls of radii t times ``shares``."""

    modalities: tuple[str, ...]
    shares: Mapping[str, float] | None = None

    def __str__(self) -> str:
        if self.shares is None:
            return "+".join(self.modalities)
        return "*".join(f"{name}:{share:.2g}" for name, share in self.shares.items())

    def size(self, delta: Mapping[str, Tensor]) -> Tensor:
        """The smallest t that holds a perturbation, ``(B,)``."""
        norms = {name: torch.linalg.vector_norm(delta[name].flatten(1), dim=1) for name in self.modalities}
        if self.shares is None:
            return torch.stack(list(norms.values())).norm(dim=0)
        return torch.stack([norm / self.shares[name] for name, norm in norms.items()]).amax(dim=0)

    def budget(self, unit: float) -> Budget:
        if self.shares is None:
            return Budget(unit, modalities=list(self.modalities))
        return Budget({name: unit * share for name, share in self.shares.items()})

    def shortest(self, slopes: Mapping[str, Tensor], needed: Tensor) -> dict[str, Tensor]:
        """The smallest perturbation along which something with these gradients grows by ``needed``, ``(B,)``."""
        flat = {name: slopes[name].flatten(1) for name in self.modalities}
        norms = {name: slope.norm(dim=1) for name, slope in flat.items()}
        if self.shares is None:
            square = torch.stack([norm.square() for norm in norms.values()]).sum(dim=0)
            factors = dict.fromkeys(flat, needed / square.clamp(min=1e-280))
        else:
            total = torch.stack([self.shares[name] * norm for name, norm in norms.items()]).sum(dim=0)
            t = needed / total.clamp(min=1e-140)
            factors = {name: t * self.shares[name] / norm.clamp(min=1e-140) for name, norm in norms.items()}
        return {name: (factors[name][:, None] * slope).reshape(slopes[name].shape) for name, slope in flat.items()}


class Reference:
    """The exact function that a model stands for.

    Args:
        model: a float64 copy of what runs.
        plain: the encoders and head in it as they are understood, for the bound of float64's own error.
    """

    def __init__(self, model: nn.Module, plain: CRMTModule) -> None:
        self.model = model
        self.sizes = magnitudes(plain)
        fans = [p[0].numel() + 8 for p in plain.parameters() if p.dim() > 1]
        self.terms = 16 * (sum(fans) + 8 * len(list(plain.modules())))

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.model(dict(inputs)).logits

    def error(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What float64 may lose in a difference of logits, ``(B,)``."""
        with torch.no_grad():
            size = self.sizes({name: value.abs() for name, value in inputs.items()})
        return self.terms * UNIT * size.amax(dim=1)

    def lead(self, inputs: Mapping[str, Tensor], prediction: Tensor) -> Tensor:
        """By how much another class surely leads, ``(B, K)``; minus infinity for the class itself."""
        with torch.no_grad():
            logits = self(inputs)
        ahead = logits - logits.gather(1, prediction[:, None])
        # Where exact arithmetic overflows in float64 too, nothing is known.
        ahead = torch.where(ahead.isfinite(), ahead - self.error(inputs)[:, None], -torch.inf)
        return ahead.scatter(1, prediction[:, None], -torch.inf)

    def other(self, inputs: Mapping[str, Tensor], prediction: Tensor) -> Tensor:
        """Where another class surely leads, ``(B,)``."""
        return (self.lead(inputs, prediction) > 0).any(dim=1)

    def slopes(
        self, inputs: Mapping[str, Tensor], prediction: Tensor, rival: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Lead of a rival, ``(B,)``, and its gradient by modality."""
        leaves = {name: value.detach().clone().requires_grad_(True) for name, value in inputs.items()}
        with torch.enable_grad():
            logits = self(leaves)
            ahead = (logits.gather(1, rival[:, None]) - logits.gather(1, prediction[:, None])).squeeze(1)
            found = torch.autograd.grad(ahead.sum(), list(leaves.values()), allow_unused=True)
        slopes = {
            name: (torch.zeros_like(leaf) if slope is None else slope.nan_to_num(0.0, 0.0, 0.0))
            for (name, leaf), slope in zip(leaves.items(), found, strict=True)
        }
        return ahead.detach(), slopes


class _Grow(nn.Module):
    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.offset


class _GroupMax(nn.Module):
    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], -1, self.group_size, *x.shape[2:])
        return groups.amax(dim=2, keepdim=True).expand_as(groups).flatten(1, 2)


class _Mix(nn.Module):
    def __init__(self, branch: nn.Module, weight: float) -> None:
        super().__init__()
        self.branch, self.weight = branch, weight

    def forward(self, x: Tensor) -> Tensor:
        return abs(1 - self.weight) * x + abs(self.weight) * self.branch(x)


def magnitudes(model: CRMTModule) -> nn.Module:
    """A network of absolute weights for absolute inputs: the sums that rounding errors are relative to."""
    plain = with_fixed_weights(model).double().eval()
    net = nn.Module()
    net.encoders = nn.ModuleDict({name: _absolute(encoder) for name, encoder in plain.encoders.items()})
    head = plain.head
    net.head = FixedFusion(
        {name: rows.abs() for name, rows in head.class_weights.items()},
        {name: torch.ones_like(head.bias) for name in head.in_features},
        head.bias.abs(),
    )
    net.forward = lambda inputs: net.head({n: f(inputs[n]) for n, f in net.encoders.items()}).logits
    return net


def _absolute(part: nn.Module) -> nn.Module:
    if isinstance(part, GroupSort):
        return _GroupMax(part.group_size)
    if isinstance(part, Residual):
        return _Mix(_absolute(part.branch), float(part.weight))
    if isinstance(part, nn.LeakyReLU):
        return _Grow(max(1.0, abs(part.negative_slope)), 0.0)
    if isinstance(part, nn.PReLU):
        return _Grow(max(1.0, float(part.weight.abs().max())), 0.0)
    if isinstance(part, nn.ELU):
        return _Grow(max(1.0, abs(part.alpha)), 0.0)
    if isinstance(part, nn.SELU | nn.GELU | nn.SiLU):
        return _Grow(1.8, 0.0)
    if isinstance(part, nn.Sigmoid | nn.LogSigmoid | nn.Hardsigmoid):
        return _Grow(1.0, 1.0)
    if isinstance(part, nn.Softplus):
        return _Grow(1.0, 1.0 / part.beta)
    if isinstance(part, nn.Hardtanh) and not isinstance(part, nn.ReLU6):
        return _Grow(1.0, max(abs(part.min_val), abs(part.max_val)))
    if isinstance(part, nn.ReLU | nn.ReLU6 | nn.Tanh | nn.Softsign):
        return nn.Identity()
    if parametrize.is_parametrized(part):
        part = _stored(part)
    made = copy.copy(part)
    made._modules = {name: None if child is None else _absolute(child) for name, child in part._modules.items()}
    made._parameters = {n: None if p is None else nn.Parameter(p.detach().abs()) for n, p in part._parameters.items()}
    made._buffers = {n: None if b is None else b.clone() for n, b in part._buffers.items()}
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
        made.running_mean = -part.running_mean.abs()
    if isinstance(part, Scale):
        made.factor = abs(part.factor)
    return made


def _stored(part: nn.Module) -> nn.Module:
    """With its weights as they are computed; torch's own way changes the class, which copies share."""
    kind = parametrize.type_before_parametrizations(part)
    made: nn.Module = kind.__new__(kind)
    made.__dict__.update(part.__dict__)
    weights = {name: nn.Parameter(getattr(part, name).detach()) for name in part.parametrizations}
    made._parameters = {**part._parameters, **weights}
    made._modules = {name: child for name, child in part._modules.items() if name != "parametrizations"}
    return made


# Answers, each ``(B,)``.


def affine(
    reference: Reference, inputs: Mapping[str, Tensor], prediction: Tensor, threats: Sequence[Threat]
) -> list[Tensor]:
    """Of an affine model: its own slope leads to every rival's boundary by the shortest way."""
    with torch.no_grad():
        classes = reference(inputs).shape[1]
    best = [torch.full(prediction.shape, torch.inf, dtype=torch.float64) for _ in threats]
    error = reference.error(inputs)
    for step in range(1, classes):
        ahead, slopes = reference.slopes(inputs, prediction, (prediction + step) % classes)
        needed = (error - ahead).clamp(min=0)
        for index, threat in enumerate(threats):
            shortest = threat.size(threat.shortest(slopes, needed))
            # What nothing in this threat moves stays where it is.
            still = threat.size({name: slopes[name] for name in threat.modalities}) < 1e-140
            shortest = torch.where(still, torch.where(needed == 0, 0.0, torch.inf), shortest)
            best[index] = torch.minimum(best[index], torch.where(ahead.isfinite(), shortest, torch.inf))
    return best


def moved_by(inputs: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs plus a perturbation of some of them."""
    return {name: value + delta[name] if name in delta else value for name, value in inputs.items()}


def times(delta: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
    """A perturbation times a factor for each sample."""
    return {name: factor.reshape(-1, *[1] * (each.dim() - 1)) * each for name, each in delta.items()}


def along(
    reference: Reference,
    inputs: Mapping[str, Tensor],
    prediction: Tensor,
    threat: Threat,
    direction: Mapping[str, Tensor],
    radius: Tensor,
) -> Tensor:
    """The smallest t found on a ray, from a little of ``radius`` to many times it, sharpened by section."""
    size = threat.size(direction).clamp(min=1e-300)
    unit = times(direction, 1 / size)
    count = len(radius)

    def flips(t: Tensor) -> Tensor:  # (B, S)
        number = t.shape[1]
        rows = torch.arange(count).repeat_interleave(number)
        delta = times({name: each[rows] for name, each in unit.items()}, t.flatten())
        moved = moved_by({name: value[rows] for name, value in inputs.items()}, delta)
        return reference.other(moved, prediction[rows]).reshape(count, number)

    steps = [*(i / 8 for i in range(1, 8)), 0.95, 0.99, 0.999, 0.999999, 1.0, 1.05, 1.2, 1.5, 2, 3, 5, 10, 30]
    t = radius[:, None] * torch.tensor(steps, dtype=torch.float64)
    flipped = flips(t)
    found = flipped.any(dim=1)
    if not bool(found.any()):
        return torch.full_like(radius, torch.inf)
    shares = torch.linspace(0, 1, 14, dtype=torch.float64)[1:]
    low = torch.zeros_like(radius)
    for turn in range(6):
        first = flipped.int().argmax(dim=1, keepdim=True)
        high = t.gather(1, first).squeeze(1)
        low = torch.where(first.squeeze(1) > 0, t.gather(1, (first - 1).clamp(min=0)).squeeze(1), low)
        if turn < 5:
            t = low[:, None] + (high - low)[:, None] * shares
            t[:, -1] = high  # which is known to flip
            flipped = flips(t)
            flipped[:, -1] = True
    # As it is stored: x + delta rounds.
    stored = moved_by(inputs, times(unit, torch.where(found, high, 0.0)))
    delta = {name: stored[name] - inputs[name] for name in threat.modalities}
    return torch.where(found, torch.maximum(threat.size(delta), high), torch.inf)


def searched(
    reference: Reference,
    inputs: Mapping[str, Tensor],
    prediction: Tensor,
    threat: Threat,
    radius: Tensor,
    directions: int = 4,
    steps: int = 12,
) -> Tensor:
    """The nearest that is found: rays along gradients and at random, and a walk on the border of the claim."""
    best = torch.where(reference.other(inputs, prediction), 0.0, torch.inf)
    usable = radius.isfinite() & (radius > 0) & (best > 0)
    radius = torch.where(usable, radius, 1.0)
    with torch.no_grad():
        classes = reference(inputs).shape[1]
    rivals = torch.cat([(prediction + step) % classes for step in range(1, classes)])
    many = {name: value.repeat(classes - 1, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    own, length, one = prediction.repeat(classes - 1), radius.repeat(classes - 1), torch.ones(len(rivals)).double()

    def to_border(delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return times(delta, length / threat.size(delta).clamp(min=1e-300))

    _, slopes = reference.slopes(many, own, rivals)
    rays = [threat.shortest(slopes, one)]
    delta = to_border(rays[0])
    for _ in range(steps):
        _, slopes = reference.slopes(moved_by(many, delta), own, rivals)
        ahead = to_border(threat.shortest(slopes, one))
        delta = to_border({name: (delta[name] + ahead[name]) / 2 for name in delta})
    rays.append(delta)
    for _ in range(directions):
        rays.append({name: torch.randn_like(many[name]) for name in threat.modalities})
    for ray in rays:
        nearest = along(reference, many, own, threat, ray, length)
        best = torch.minimum(best, nearest.reshape(classes - 1, -1).amin(dim=0))
    return best


def by_minimum_norm(
    reference: Reference, inputs: Mapping[str, Tensor], prediction: Tensor, threat: Threat, radius: Tensor, steps: int
) -> Tensor:
    """What the package's own search finds, measured and scored here."""
    best = torch.full(prediction.shape, torch.inf, dtype=torch.float64)
    finite = radius[radius.isfinite() & (radius > 0)]
    unit = float(finite.median()) if len(finite) else 1.0
    try:
        found = MinimumNorm(threat.budget(unit), steps=steps, restarts=1).search(reference, dict(inputs), prediction)
    except (ValueError, RuntimeError):  # logits that are not finite
        return best
    delta = {name: found.inputs[name] - inputs[name] for name in threat.modalities}
    # It ends so near to the boundary that float64 cannot tell the sides apart: a hair further, it can.
    size = threat.size(delta)
    some = found.factor.isfinite() & (size > 0)
    beyond = along(reference, inputs, prediction, threat, delta, torch.where(some, size, 1.0))
    return torch.where(some, beyond, best)


def on_a_grid(
    reference: Reference, inputs: Mapping[str, Tensor], prediction: Tensor, threat: Threat, radius: Tensor, points: int
) -> Tensor:
    """For modalities of one number each, one or two of them attacked: a dense grid of the sum that late fusion is."""
    best = torch.where(reference.other(inputs, prediction), 0.0, torch.inf)
    names = threat.modalities
    spread = sum(inputs[name].abs().max() for name in names) + 1e-300
    reach = 2 * torch.where(radius.isfinite() & (radius > 0), radius, spread)
    with torch.no_grad():
        clean = reference(inputs)
    ahead = clean - clean.gather(1, prediction[:, None])
    at = torch.cat([torch.linspace(0, 1, points + 1)[1:], torch.tensor([0.5, 0.4999999, 0.45])]).sort().values.double()
    falls = {}  # the most that each modality adds to a rival's lead within t, and where
    for name in names:
        share = 1.0 if threat.shares is None else threat.shares[name]
        signed = torch.cat([-at, at]) * share
        moved = inputs[name] + signed[None, :] * reach[:, None]  # (B, 2N)
        count = moved.shape[1]
        batch = {
            n: (moved.reshape(-1, 1) if n == name else value.repeat_interleave(count, dim=0))
            for n, value in inputs.items()
        }
        with torch.no_grad():
            logits = reference(batch).reshape(len(prediction), count, -1)
        own = logits.gather(2, prediction[:, None, None].expand(-1, count, 1))
        gain = (logits - own) - ahead[:, None, :]
        gain = gain.nan_to_num(-torch.inf)
        both = torch.stack([gain[:, : len(at)], gain[:, len(at) :]], dim=0)
        side = both.argmax(dim=0)
        largest, index = both.amax(dim=0).cummax(dim=1)
        sign = torch.where(side.gather(1, index) == 1, 1.0, -1.0)
        where = sign * at[index] * share
        zero = torch.zeros(len(prediction), 1, clean.shape[1], dtype=torch.float64)
        falls[name] = (torch.cat([zero, largest.clamp(min=0)], 1), torch.cat([zero, where], 1))
    t = torch.cat([torch.zeros(1, dtype=torch.float64), at])
    first, where_first = falls[names[0]]
    if len(names) == 1:
        sizes, total = t, first
        places = {names[0]: where_first}
    elif threat.shares is not None:
        sizes, total = t, first + falls[names[1]][0]
        places = {names[0]: where_first, names[1]: falls[names[1]][1]}
    else:
        second, where_second = falls[names[1]]
        square = (t[:, None] ** 2 + t[None, :] ** 2).sqrt().flatten()
        total = (first[:, :, None] + second[:, None, :]).flatten(1, 2)
        places = {
            names[0]: where_first[:, :, None].expand(-1, -1, len(t), -1).flatten(1, 2),
            names[1]: where_second[:, None, :].expand(-1, len(t), -1, -1).flatten(1, 2),
        }
        sizes = square
    flips = (total + ahead[:, None, :]) > reference.error(inputs)[:, None, None]
    flips &= torch.nn.functional.one_hot(prediction, clean.shape[1]).eq(0)[:, None, :]
    distance = torch.where(flips, sizes[None, :, None], torch.inf)
    nearest, index = distance.flatten(1).min(dim=1)
    rows = torch.arange(len(prediction))
    delta = {name: (place.flatten(1)[rows, index] * reach)[:, None] for name, place in places.items()}
    hit = nearest.isfinite()
    delta = {name: torch.where(hit[:, None], each, 0.0) for name, each in delta.items()}
    hit &= reference.other(moved_by(inputs, delta), prediction)
    low, high = torch.zeros_like(reach), torch.ones_like(reach)
    # Between the last grid point before it and this one.
    low = torch.where(hit, 1 - 2.0 / points / nearest.clamp(min=1e-9), low).clamp(min=0)
    for _ in range(40):
        middle = (low + high) / 2
        flipped = reference.other(moved_by(inputs, times(delta, middle)), prediction)
        high, low = torch.where(flipped, middle, high), torch.where(flipped, low, middle)
    stored = moved_by(inputs, times(delta, high))
    size = threat.size({name: stored[name] - inputs[name] for name in names})
    hit &= reference.other(stored, prediction)
    return torch.minimum(best, torch.where(hit, size, torch.inf))


def by_regions(
    reference: Reference,
    weights: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
    rows: Mapping[str, Tensor],
    bias: Tensor,
    inputs: Mapping[str, Tensor],
    prediction: Tensor,
    threat: Threat,
) -> Tensor:
    """Of networks with one hidden layer of few ReLUs each: the nearest point of every region's every face.

    The nearest input of another class lies on the boundary to a rival, and on some of the hyperplanes where a unit
    switches: for each region and each choice of these, the nearest point is linear algebra. All are scored by the
    network itself, so that none counts which does not lie where it should.

    Args:
        reference: the network.
        weights: by modality, ``[(W1, b1), (W2, b2)]``.
        rows: of the head, ``(K, d_m)`` by modality.
        bias: of the head.
        inputs: ``(B, d)`` by modality, together with few entries.
        prediction: ``(B,)``.
        threat: a ball.
    """
    names = list(inputs)
    x = torch.cat([inputs[name] for name in names], dim=1)
    sizes = [inputs[name].shape[1] for name in names]
    free = torch.cat([torch.full((size,), name in threat.modalities) for name, size in zip(names, sizes, strict=True)])
    first = torch.block_diag(*[weights[name][0][0] for name in names])
    first_bias = torch.cat([weights[name][0][1] for name in names])
    second = torch.cat([rows[name] @ weights[name][1][0] for name in names], dim=1)
    second_bias = bias + sum(rows[name] @ weights[name][1][1] for name in names)
    units, dimensions = len(first_bias), int(free.sum())
    best = torch.where(reference.other(inputs, prediction), 0.0, torch.inf)
    slack = reference.error(inputs)
    on = torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)  # (P, H)
    matrix = (second[None] * on[:, None, :]) @ first  # (P, K, d)
    offset = (on * first_bias) @ second.mT + second_bias  # (P, K)
    regions, samples = len(on), len(x)
    everywhere = {name: value.repeat(regions, 1) for name, value in inputs.items()}
    for step in range(1, len(bias)):
        rival = (prediction + step) % len(bias)
        normal = matrix[:, rival] - matrix[:, prediction]  # (P, B, d)
        needed = slack - (normal * x).sum(2) - (offset[:, rival] - offset[:, prediction])  # (P, B)
        for count in range(dimensions):
            for chosen in itertools.combinations(range(units), count):
                planes = first[list(chosen)]
                system = torch.cat([normal[:, :, None], planes.expand(regions, samples, -1, -1)], dim=2)[..., free]
                to_planes = (-(x @ planes.mT) - first_bias[list(chosen)]).expand(regions, -1, -1)
                right = torch.cat([needed[:, :, None], to_planes], dim=2)
                solution = torch.linalg.solve_ex(system @ system.mT, right[..., None]).result
                delta = torch.zeros(regions, samples, x.shape[1], dtype=torch.float64)
                # A hair further, since these points lie on boundaries.
                delta[..., free] = (system.mT @ solution).squeeze(3).nan_to_num(0.0, 0.0, 0.0) * (1 + 1e-12)
                parts = dict(zip(names, delta.flatten(0, 1).split(sizes, dim=1), strict=True))
                size = threat.size(parts)
                hit = (size < best.repeat(regions)) & (size < 1e12)
                rows = hit.nonzero().flatten()
                if not len(rows):
                    continue
                moved = moved_by({n: v[rows] for n, v in everywhere.items()}, {n: v[rows] for n, v in parts.items()})
                hit[rows] = reference.other(moved, prediction.repeat(regions)[rows])
                best = torch.minimum(best, torch.where(hit, size, torch.inf).reshape(regions, samples).amin(dim=0))
    return best
