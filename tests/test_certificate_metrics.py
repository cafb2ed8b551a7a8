# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_crmt import Certificate, Soundness
from lightning_crmt.metrics import (
    CertifiedAccuracy,
    EstimatedAccuracy,
    MeanCertifiedRadius,
    MeanEstimatedRadius,
    credited_radius,
    robust_at,
)

CERTIFIED = (CertifiedAccuracy, MeanCertifiedRadius)
ESTIMATED = (EstimatedAccuracy, MeanEstimatedRadius)


def certificate(soundness=Soundness.SOUND, size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 4, generator=generator)
    prediction = logits.argmax(1)
    margins = logits.gather(1, prediction[:, None]) - logits
    slopes = {name: torch.rand(size, 4, generator=generator) + 0.5 for name in ("audio", "image")}
    return Certificate(prediction, margins, slopes, soundness), torch.randint(4, (size,), generator=generator)


def by_loops(found, target, modalities):
    radii = []
    for i, y in enumerate(target.tolist()):
        p = found.prediction[i].item()
        bounds = [
            found.margins[i, j].item() / sum(found.sensitivities[m][i, j].item() ** 2 for m in modalities) ** 0.5
            for j in range(4)
            if j != p
        ]
        radii.append(min(bounds) if p == y else 0.0)
    return radii


@pytest.mark.parametrize("modalities", [None, ["audio"], ["image", "audio"]])
def test_functions_and_metrics_are_the_formula(modalities):
    found, target = certificate()
    radii = by_loops(found, target, modalities or ["audio", "image"])
    torch.testing.assert_close(credited_radius(found, target, modalities), torch.tensor(radii))
    assert robust_at(found, target, 0.3, modalities).tolist() == [r > 0.3 for r in radii]
    accuracy, mean = CertifiedAccuracy(0.3, modalities), MeanCertifiedRadius(modalities)
    for metric in (accuracy, mean):
        metric.update(found, target)
    assert accuracy.compute().item() == pytest.approx(sum(r > 0.3 for r in radii) / len(radii))
    assert mean.compute().item() == pytest.approx(sum(radii) / len(radii), rel=1e-5)


@pytest.mark.parametrize("kind", [*CERTIFIED, *ESTIMATED])
def test_batches_add_up(kind):
    soundness = Soundness.SOUND if kind in CERTIFIED else Soundness.ESTIMATED
    parts = [certificate(soundness, size, seed) for seed, size in enumerate((5, 30, 1))]
    metric, total = kind(), 0.0
    for found, target in parts:
        metric.update(found, target)
        alone = kind()
        alone.update(found, target)
        total += alone.compute().item() * len(target)
    assert metric.compute().item() == pytest.approx(total / 36, rel=1e-5)
    metric.reset()
    metric.update(*parts[0])
    alone = kind()
    alone.update(*parts[0])
    assert metric.compute() == alone.compute()


@pytest.mark.parametrize("kind", CERTIFIED)
def test_certified_metrics_refuse_estimates(kind):
    message = f"`{kind.__name__}` takes certified radii, got a certificate of soundness ESTIMATED, whose radii are"
    with pytest.raises(ValueError, match=re.escape(message)):
        kind().update(*certificate(Soundness.ESTIMATED))


@pytest.mark.parametrize("kind", ESTIMATED)
@pytest.mark.parametrize("soundness", [Soundness.SOUND, Soundness.RIGOROUS, Soundness.PROBABILISTIC])
def test_estimated_metrics_are_for_estimates(kind, soundness):
    certified = "ProbablyCertified" if soundness is Soundness.PROBABILISTIC else "Certified"
    other = kind.__name__.replace("Estimated", certified)
    with pytest.raises(ValueError, match=f"use {other}"):
        kind().update(*certificate(soundness))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`radius` must be at least 0, got -1"):
        CertifiedAccuracy(-1)
    with pytest.raises(ValueError, match="`radius` must be at least 0, got nan"):
        robust_at(*certificate(), float("nan"))
    found, target = certificate()
    with pytest.raises(ValueError, match="class indices from 0 to 3"):
        CertifiedAccuracy().update(found, target + 4)
    with pytest.raises(ValueError, match=re.escape("must name modalities among ['audio', 'image'], got ['smell']")):
        CertifiedAccuracy(modalities=["smell"]).update(found, target)


def test_in_a_collection():
    metrics = MetricCollection({"small": CertifiedAccuracy(0.1), "large": CertifiedAccuracy(0.5)})
    metrics.update(*certificate())
    found = metrics.compute()
    assert found["large"] < found["small"]
