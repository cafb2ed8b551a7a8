# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Step 2 of CRMT: the integration weights alone, on scores that no longer change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import Optimizer

from lightning_crmt.checks import (
    check_at_least,
    check_batch,
    check_positive,
    check_same_modalities,
    describe,
    require_finite,
)
from lightning_crmt.frozen_eval import as_taken_by, frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import (
    LipschitzConstants,
    ProbeSearch,
    bounds_for,
    encoders_and_head,
    estimate_and_show,
)
from lightning_crmt.losses import Objective, integration_objective, true_class_radii
from lightning_crmt.modality import FusionOutput, Inputs, at_least_single, modalities_of, present_of, where_present
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import check_answers

#: The levels that the constants of step 2 can have.
CONSTANTS_LEVELS = (Soundness.ESTIMATED, Soundness.SOUND)

#: Makes an optimizer of parameters.
OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]


class Reweighted(NamedTuple):
    """What step 2 ended with.

    Attributes:
        head: a copy of the head with the new integration weights, on the CPU; ``load_state_dict`` takes it over.
        objective: mean of the objective over each epoch, while its weights changed.
        weights: mean integration weight of each modality after each epoch.
        clip: bound of the clipped objective, in units of the inputs; None for ``"mean"``.
    """

    head: LateFusion
    objective: list[float]
    weights: list[dict[str, float]]
    clip: float | None


def reweight(
    head: LateFusion,
    scores: Inputs,
    target: Tensor,
    constants: LipschitzConstants,
    present: Inputs | None = None,
    *,
    objective: Objective = "clipped",
    clip: float | None = None,
    epochs: int = 10,
    lr: float = 0.01,
    batch_size: int = 64,
    optimizer: OptimizerFactory = torch.optim.Adam,
    seed: int = 0,
    on_epoch: Callable[[float, dict[str, float]], object] | None = None,
) -> Reweighted:
    r"""Step 2 of CRMT (Yang et al., ICLR 2024) as a function: integration weights that maximise the robustness bound.

    Minimises :func:`~lightning_crmt.integration_objective` over the integration weights :math:`a \ge 0`, by the
    gradients of batches of kept scores; everything else, the head that is given too, stays as it is. The joint norm
    of all weights is kept: apart from the bias the bound does not depend on it, but the scale of the logits does.

    Modalities that are ``clean`` in the constants, such as tokens, keep their weights, and the norm that is kept is
    that of the others. In the bound a modality that cannot change costs nothing: its weights would grow at the expense
    of the others, and accuracy with it. The bound, and the radius it raises, is about changes of the others alone.

    The same arguments give the same weights. Computed on the CPU, in single precision at least.

    Args:
        head: late fusion with integration weights, such as ``OrthogonalFusion``.
        scores: uni-modal scores of the training samples by modality, each ``(N, K)``, in evaluation mode; see
            :func:`keep_scores`.
        target: classes, ``(N,)``, or labels, ``(N, K)`` of bools or integers.
        constants: of encoders or scores, of the same weights.
        present: which samples have a modality, ``(N,)`` bool, for those that may be absent. Only what a sample has can
            change in its bound.
        objective: ``"clipped"``, or ``"mean"`` as in the paper.
        clip: bound c of the clipped objective, in units of the inputs; by default the mean :math:`|r|` at the start.
        epochs: passes over the scores.
        lr: learning rate, whatever the optimizer.
        batch_size: samples in a step.
        optimizer: makes the optimizer of the weights' parameters, ``Adam`` by default.
        seed: of the order of the samples.
        on_epoch: called after each epoch with its objective and the mean weights, to show progress.

    Raises:
        ValueError: if a setting is out of range, scores, target, head and constants do not fit together or are not
            finite, or no modality is left to reweight.
        TypeError: if the head has no integration weights.

    >>> from lightning_crmt import OrthogonalFusion
    >>> head = OrthogonalFusion({"audio": 4, "image": 4}, num_classes=3)
    >>> target = torch.arange(60) % 3
    >>> right = nn.functional.one_hot(target).float()
    >>> noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    >>> one = {"audio": torch.ones(3), "image": torch.ones(3)}
    >>> constants = LipschitzConstants(one, of="scores", soundness=Soundness.ESTIMATED)
    >>> new = reweight(head, {"audio": right, "image": noise}, target, constants).head
    >>> bool((new.integration_weights["audio"] > new.integration_weights["image"]).all())
    True
    """
    check_at_least(1, epochs=epochs, batch_size=batch_size)
    check_positive(lr=lr, clip=clip)
    check_reweightable(head)
    check_same_modalities("scores", scores, head.in_features)
    target = check_answers(target, head.num_classes, check_batch("scores", scores))
    require_finite("scores", scores)
    new = copy.deepcopy(head).cpu().requires_grad_(False)
    if new.bias.dtype not in (torch.float32, torch.float64):
        new = new.float()
    weights = _weights_of_others(new, constants.clean)
    for weight in weights:
        weight.requires_grad_(True)
    scores = {name: value.detach().to(new.bias) for name, value in scores.items()}
    constants = LipschitzConstants(
        {name: value.detach().to(new.bias) for name, value in constants.values.items()},
        of=constants.of,
        soundness=constants.soundness,
        clean=constants.clean,
    )
    target, size = target.cpu(), len(target)
    here = {name: each.cpu() for name, each in (present or {}).items()}
    scores = {name: where_present(value, here.get(name)) for name, value in scores.items()}

    def output(rows: Tensor) -> FusionOutput:
        some = {name: value[rows] for name, value in scores.items()}
        return FusionOutput(new.fuse(some), some, present={name: each[rows] for name, each in here.items()})

    if objective == "clipped" and clip is None:
        with torch.no_grad():
            radii = torch.cat(
                [
                    true_class_radii(output(rows), target[rows], new, constants).abs().double()
                    for rows in torch.split(torch.arange(size), 4096)
                ]
            )
        if radii.isinf().all():
            raise ValueError(f"`present` must leave samples that have one of the modalities {constants.modalities}")
        clip = float(radii[~radii.isinf()].mean())
    norm = parameters_to_vector(weights).detach().norm()
    steps = optimizer(weights)
    for group in steps.param_groups:
        group["lr"] = lr
    generator = torch.Generator().manual_seed(seed)
    objectives, means = [], []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(size, generator=generator), batch_size):
            loss = integration_objective(output(rows), target[rows], new, constants, objective=objective, clip=clip)
            steps.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            with torch.no_grad():
                now = parameters_to_vector(weights).norm()
                for weight in weights:
                    weight.mul_(norm / now)
            total += float(loss.detach()) * len(rows)
        objectives.append(total / size)
        means.append({name: float(weight.detach().mean()) for name, weight in new.integration_weights.items()})
        if on_epoch is not None:
            on_epoch(objectives[-1], means[-1])
    new.requires_grad_(True)
    return Reweighted(new, objectives, means, clip)


def _weights_of_others(head: LateFusion, clean: Collection[str]) -> list[nn.Parameter]:
    """Integration parameters without those that the head keeps under the name of a modality that stays clean."""
    kept = {id(p) for path, p in head.named_parameters() if not set(clean).isdisjoint(path.split("."))}
    if clean and not kept.intersection(map(id, head.integration_parameters())):
        raise TypeError(
            f"the head must keep the integration weights of each modality in a parameter under its name, where "
            f"{list(clean)} stay clean, got {describe(head)}"
        )
    weights = [weight for weight in head.integration_parameters() if id(weight) not in kept]
    if not weights:
        raise ValueError(f"`constants` must be of a modality to reweight, and all stay clean: {list(clean)}")
    return weights


def check_reweightable(head: nn.Module) -> LateFusion:
    """``head``, checked to be late fusion with integration weights.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(head, LateFusion) or not head.integration_parameters():
        raise TypeError(
            f"step 2 needs late fusion with integration weights, such as OrthogonalFusion, got {type(head).__name__}"
        )
    return head


class KeptScores(NamedTuple):
    """What step 2 needs of a model and its training data: the arguments of :func:`reweight` after the head.

    Attributes:
        scores: by modality, each ``(N, K)``, on the CPU.
        target: classes, ``(N,)``, or labels, ``(N, K)``, on the CPU.
        constants: Lipschitz constants of the same weights.
        present: which samples have a modality, ``(N,)`` bool on the CPU, for those that may be absent.
    """

    scores: dict[str, Tensor]
    target: Tensor
    constants: LipschitzConstants
    present: dict[str, Tensor] = {}  # noqa: RUF012


def of_samples(kept: KeptScores, rows: Tensor) -> KeptScores:
    """What was kept of the samples ``rows``, indices or a mask ``(N,)``."""
    scores, present = ({n: value[rows] for n, value in each.items()} for each in (kept.scores, kept.present))
    return kept._replace(scores=scores, target=kept.target[rows], present=present)


def keep_scores(
    model: nn.Module,
    batches: Iterable[tuple[Inputs, Tensor]],
    constants: Soundness | str | ProbeSearch = Soundness.ESTIMATED,
) -> KeptScores:
    """Scores of all samples and the Lipschitz constants, in one pass over the data.

    In evaluation mode, without autocast; the model stays as it is. A model that was trained without step 2 gets it by::

        kept = keep_scores(model, loader)
        model.head.load_state_dict(reweight(model.head, *kept).head.state_dict())

    Args:
        model: gives a ``FusionOutput``; bounds are those of its ``encoders``.
        batches: inputs by modality and classes ``(B,)`` or labels ``(B, K)``; wrap the iterable to show progress.
        constants: ``"estimated"``, of the scores on these batches, as in the paper; or ``"sound"``, upper bounds for
            encoders all of whose layers have one, such as ``LipschitzMLP``, over all shapes of samples that come. A
            :class:`~lightning_crmt.ProbeSearch` estimates without taking all gradients: for many classes.

    Raises:
        ValueError: if there are no batches, or for what :func:`~lightning_crmt.estimate_lipschitz` and
            :func:`~lightning_crmt.encoder_bounds` refuse.

    >>> from lightning_crmt import CRMTModule
    >>> from lightning_crmt.encoders import MLP
    >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10)
    >>> batch = {"audio": torch.randn(7, 20), "image": torch.randn(7, 30)}, torch.arange(7)
    >>> kept = keep_scores(model, [batch, batch])
    >>> kept.scores["audio"].shape, kept.constants.values["audio"].shape
    (torch.Size([14, 10]), torch.Size([10]))
    """
    if isinstance(constants, ProbeSearch):
        search, level = constants, Soundness.ESTIMATED
    else:
        search, level = None, Soundness.among(CONSTANTS_LEVELS, "constants", constants)
    scores: list[dict[str, Tensor]] = []
    targets: list[Tensor] = []
    presences: list[dict[str, Tensor]] = []
    bounds: dict[tuple[tuple[str, tuple[int, ...]], ...], LipschitzConstants] = {}

    def inputs() -> Iterator[Inputs]:
        for each, target in batches:
            targets.append(target.cpu())
            presences.append({name: here.cpu() for name, here in present_of(each).items()})
            yield each

    def keep(of_batch: Inputs) -> None:
        scores.append({name: at_least_single(value).cpu() for name, value in of_batch.items()})

    with frozen_eval(model):
        if level is Soundness.ESTIMATED:
            measured = estimate_and_show(model, inputs(), search=search, show=keep)
        else:
            for each in inputs():
                with torch.no_grad():
                    keep(model(as_taken_by(model, each)).scores)
                key = tuple((name, tuple(value.shape[1:])) for name, value in modalities_of(each).items())
                if key not in bounds:
                    bounds[key] = bounds_for(encoders_and_head(model)[0], each)
            if not bounds:
                raise ValueError("`batches` must hold at least one batch, got none")
            measured = _largest(bounds.values())
    names, maybe = list(scores[0]), dict.fromkeys(name for each in presences for name in each)
    present = {
        name: torch.cat(
            [
                each.get(name, torch.ones(len(target), dtype=torch.bool))
                for each, target in zip(presences, targets, strict=True)
            ]
        )
        for name in maybe
    }
    kept = {name: torch.cat([each[name] for each in scores]) for name in names}
    return KeptScores(kept, torch.cat(targets), measured, present)


def _largest(constants: Collection[LipschitzConstants]) -> LipschitzConstants:
    first = next(iter(constants))
    values = {name: torch.stack([each.values[name] for each in constants]).amax(0) for name in first.modalities}
    return LipschitzConstants(values, of=first.of, soundness=first.soundness, clean=first.clean)
