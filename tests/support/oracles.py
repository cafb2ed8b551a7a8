# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Slow loops over Python floats, written from the formulas of the method and not from the code under test."""

import math

import torch

from lightning_crmt import LipschitzConstants, OrthogonalFusion, Soundness

KINDS = ("scores", "encoder", "margins")
PRECISIONS = (torch.float32, torch.float64)


# What the tests compute on.


def random_head(num_modalities, num_classes, kind=OrthogonalFusion, dtype=torch.float32, seed=0):
    """A head with feature sizes K, K + 1, ..., and no two weights or biases alike."""
    torch.manual_seed(seed)
    head = kind({f"m{i}": num_classes + i for i in range(num_modalities)}, num_classes).to(dtype)
    with torch.no_grad():
        head.bias.normal_()
        for weight in head.integration_parameters():
            weight.uniform_(0.2, 2.0)
    return head


def random_features(head, batch_size, seed=0):
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: 2 * torch.randn(batch_size, size, dtype=head.bias.dtype, generator=generator)
        for name, size in head.in_features.items()
    }


def random_constants(head, of, soundness=Soundness.SOUND, seed=0):
    generator = torch.Generator().manual_seed(2000 + seed)
    shape = {"encoder": (), "scores": (head.num_classes,), "margins": (head.num_classes,) * 2}[of]
    values = {name: 0.1 + torch.rand(shape, dtype=head.bias.dtype, generator=generator) for name in head.in_features}
    if of == "margins":  # the speed of h_p - h_j is that of h_j - h_p
        values = {name: value + value.mT for name, value in values.items()}
    return LipschitzConstants(values, of=of, soundness=soundness)


# LateFusion.


def fused_logits(scores, head, present):
    """h_k = sum_m a_k^m s_k^m + b_k over the modalities present."""
    weights = {name: value.tolist() for name, value in head.integration_weights.items()}
    batch_size, num_classes = next(iter(scores.values())).shape
    logits = [head.bias.tolist() for _ in range(batch_size)]
    for name in present:
        for i, row in enumerate(scores[name].tolist()):
            for k in range(num_classes):
                logits[i][k] += weights[name][k] * row[k]
    return logits


# Losses.


def margin_regularization(scores, target):
    """L1 = mean_i log sum_m sum_{k != y} exp(s_k^m - s_y^m)."""
    terms = []
    for i, y in enumerate(target.tolist()):
        total = 0.0
        for score in scores.values():
            row = score[i].tolist()
            for k in range(len(row)):
                if k != y:
                    total += math.exp(row[k] - row[y])
        terms.append(math.log(total))
    return sum(terms) / len(terms)


def integration_objective(logits, target, slopes, clip=math.inf):
    """L2 = - mean_i r(x_i), r clipped to [-c, c]."""
    radii = []
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        radius = min(
            (row[y] - row[j]) / math.sqrt(sum(slope[y][j] ** 2 for slope in slopes.values()))
            for j in range(len(row))
            if j != y
        )
        radii.append(max(-clip, min(radius, clip)))
    return -sum(radii) / len(radii)


# Certificates.


def slopes_of(head, constants, missing=()):
    """D_pj^m for every modality and every pair of classes: nested lists by modality."""
    slopes = {}
    for name, value in constants.values.items():
        value = value.tolist()
        if constants.of == "margins":
            slopes[name] = value
        else:
            a = head.integration_weights[name].tolist()
            w = head.directions[name].tolist()
            classes = range(len(a))
            if constants.of == "scores":
                slopes[name] = [[a[p] * value[p] + a[j] * value[j] for j in classes] for p in classes]
            else:
                slopes[name] = [
                    [value * math.dist([a[p] * u for u in w[p]], [a[j] * v for v in w[j]]) for j in classes]
                    for p in classes
                ]
        if name in missing:
            slopes[name] = [[0.0] * len(row) for row in slopes[name]]
    return slopes


def radii(logits, slopes, chosen):
    """min_j (h_p - h_j) / sqrt(sum_{m in chosen} (D_pj^m)^2), and the class j that attains it."""
    smallest, nearest = [], []
    for row in logits:
        p = row.index(max(row))
        quotients = {}
        for j in range(len(row)):
            if j != p:
                speed = math.sqrt(sum(slopes[name][p][j] ** 2 for name in chosen))
                margin = row[p] - row[j]
                quotients[j] = 0.0 if margin == 0 else margin / speed if speed > 0 else math.inf
        nearest.append(min(quotients, key=quotients.get))
        smallest.append(quotients[nearest[-1]])
    return smallest, nearest


def tolerated(logits, slopes, budgets):
    """Whether sum_m D_pj^m eps^m < h_p - h_j for all j; budgets: one number per sample by modality."""
    answers = []
    for i, row in enumerate(logits):
        p = row.index(max(row))
        answers.append(
            all(
                sum(slopes[name][p][j] * budget[i] for name, budget in budgets.items()) < row[p] - row[j]
                for j in range(len(row))
                if j != p
            )
        )
    return answers


# Lipschitz constants.


def score_speeds(model, inputs):
    """max_i || d s_k^m / d x^m (x_i) ||: one sample, one class and one modality at a time."""
    return {
        name: _largest(model, inputs, name, lambda k, name=name: lambda output: output.scores[name][0, k])
        for name in inputs
    }


def margin_speeds(model, inputs):
    """max_i || d (h_p - h_j) / d x^m (x_i) ||: one sample, one pair and one modality at a time."""
    return {
        name: torch.stack(
            [
                _largest(model, inputs, name, lambda j, p=p: lambda output: output.logits[0, p] - output.logits[0, j])
                for p in range(model(inputs).logits.shape[1])
            ]
        )
        for name in inputs
    }


def _largest(model, inputs, name, read):
    """For each class, the largest gradient norm over samples of what ``read(class)`` reads off the output."""
    largest = []
    for k in range(model(inputs).logits.shape[1]):
        norms = []
        for i in range(len(inputs[name])):
            sample = {other: value[i : i + 1].clone() for other, value in inputs.items()}
            sample[name].requires_grad_(True)
            (gradient,) = torch.autograd.grad(read(k)(model(sample)), sample[name])
            norms.append(gradient.norm())
        largest.append(max(norms))
    return torch.stack(largest)
