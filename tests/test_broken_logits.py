# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""An input inside the budget for which logits are not finite breaks the model, whatever searches and counts."""

import pytest
import torch
from support.linear_model import Linear, predict, samples
from test_every_attack import ATTACKS

from lightning_crmt import CRMTModule, LinearFusion, LipschitzConstants, Soundness, certify
from lightning_crmt.attacks import (
    PGD,
    Budget,
    Ensemble,
    LossAscent,
    MinimumNorm,
    MinimumNormEnsemble,
    MissingModality,
    RandomNoise,
)
from lightning_crmt.attacks.survival import distance_by, fooled_by, surviving
from lightning_crmt.certification import CertificateViolation, verify_certificate
from lightning_crmt.methods import AdversarialTraining

EVERY = pytest.mark.parametrize("attack", ATTACKS)


class Breaking(Linear):
    """Gives up its logits as soon as audio leaves a ball around the origin; in all entries, or in one."""

    def __init__(self, value, column=None, limit=1e-3, **settings):
        super().__init__(**settings)
        self.value, self.column, self.limit = value, column, limit

    def forward(self, inputs):
        logits = super().forward(inputs)
        out = inputs["audio"].norm(dim=1, keepdim=True) > self.limit
        column = torch.ones(4, dtype=torch.bool) if self.column is None else torch.arange(4) == self.column
        return torch.where(out & column, self.value, logits)


class Rooted(Linear):
    """A root of audio: NaN below 0, with a slope that grows without bound towards it."""

    def forward(self, inputs):
        return super().forward({**inputs, "audio": inputs["audio"].sqrt()})


def centred(batch_size=8):
    return {name: torch.zeros_like(value) for name, value in samples(batch_size).items()}


@EVERY
@pytest.mark.parametrize("column", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_every_attack_breaks_what_every_step_breaks(attack, value, column):
    model, x = Breaking(value, column), centred()
    y, search = predict(model, x), ATTACKS[attack](Budget(0.1, modalities=["audio"]))
    found = search(model, x, y)
    assert not model(found).isfinite().all(dim=1).any()
    assert all(value.isfinite().all() for value in found.values())
    assert (search.budget.size(search.budget.difference(found, x)) <= 1 + 1e-9).all()
    assert search.succeeds(search.logits(model, x, y), y).all()
    assert fooled_by(search, model, x, y).all()
    assert not surviving(search, model, x, y, [1.0], torch.ones(8, dtype=torch.bool))[0].any()


@pytest.mark.parametrize("towards", [0, 1, 2, 3])
def test_a_lost_answer_is_success_for_an_attack_towards_any_other_class(towards):
    model, x = Breaking(torch.nan), centred()
    y = predict(model, x)
    for search in (PGD(Budget(0.1), steps=3, towards=towards), MinimumNorm(Budget(0.1), steps=3, towards=towards)):
        assert (~model(search(model, x, y)).isfinite().all(dim=1) == (y != towards)).all()


@pytest.mark.parametrize("attack", [name for name in ATTACKS if "fgm" not in name and name != "noise"])
def test_slopes_without_bound_stop_no_search(attack):
    x = samples(20, low=0.01, high=0.05)
    y = predict(Rooted(), x)
    assert fooled_by(ATTACKS[attack](Budget(0.5)), Rooted(), x, y).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_distance_is_that_to_the_nearest_input_without_an_answer(value):
    model, x, budget = Breaking(value, limit=0.05), centred(), Budget(1.0, modalities=["audio"])
    y = predict(model, x)
    search = MinimumNorm(budget, steps=20, restarts=1)
    both = MinimumNormEnsemble([search, MinimumNorm(budget, steps=20, restarts=1, seed=1)])
    # The linear boundary is further away than that.
    assert (distance_by(search, Linear(), x, y) > 0.06).all()
    for each in (search, both):
        found = each.search(model, x, y)
        assert torch.allclose(found.factor, torch.tensor(0.05).double(), rtol=1e-4)
        assert distance_by(each, model, x, y).equal(found.factor)


def test_inputs_that_are_not_finite_are_no_success():
    """A search that runs away to NaN is pulled back: of course no model has an answer to that."""

    class RunsAway(PGD):
        def __call__(self, model, inputs, target):
            return {name: value * torch.nan for name, value in inputs.items()}

    model, x, budget = Linear(), samples(), Budget(1e-6)
    y = predict(model, x)
    found = Ensemble([RunsAway(budget), RandomNoise(budget)])(model, x, y)
    assert all(value.isfinite().all() for value in found.values())
    assert (predict(model, found) == y).all()


@EVERY
def test_without_an_answer_to_clean_inputs_an_attack_refuses(attack):
    model, x = Breaking(torch.nan, limit=-1.0), centred()
    with pytest.raises(ValueError, match="`the logits of clean inputs` must be finite"):
        ATTACKS[attack](Budget(0.1))(model, x, torch.zeros(8, dtype=torch.long))


def test_a_missing_modality_may_take_the_answer_away():
    class Divides(Linear):
        def forward(self, inputs):
            return super().forward(inputs) / inputs["image"].flatten(1).norm(dim=1, keepdim=True)

    x = samples()
    y, attack = predict(Divides(), x), MissingModality()
    assert attack.missing(Divides(), x, y)["image"].all()
    assert fooled_by(attack, Divides(), x, y).all()
    x["image"][0] = 0.0
    with pytest.raises(ValueError, match="`the logits of clean inputs` must be finite"):
        attack(Divides(), x, y)


@pytest.mark.parametrize("soundness", [Soundness.SOUND, Soundness.RIGOROUS])
@pytest.mark.parametrize("column", [None, 0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_certificate_is_disproved_by_a_lost_answer(value, column, soundness):
    head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    constants = LipschitzConstants({"audio": torch.tensor(1.0)}, of="encoder", soundness=soundness)
    certificate = certify(head(x), head, constants)
    verify_certificate(head, certificate, x, steps=3)

    def model(inputs):
        logits = head(inputs).logits
        gone = (inputs["audio"] != x["audio"][: len(logits)]).any(dim=1, keepdim=True)
        some = torch.ones(3, dtype=torch.bool) if column is None else torch.arange(3) == column
        return torch.where(gone & some, value, logits)

    with pytest.raises(CertificateViolation, match="makes its logits NaN or infinite") as error:
        verify_certificate(model, certificate, x, steps=3)
    assert error.value.counterexample.after is None


def test_training_on_a_lost_answer_names_the_attack_and_the_modality():
    class Rooting(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.sqrt())

    torch.manual_seed(0)
    encoders = {"fou": Rooting(6, 4), "mor": torch.nn.Linear(6, 4)}
    module = CRMTModule(encoders, num_classes=3, rho=0, head=LinearFusion)
    inputs = {name: torch.rand(12, 6) + 0.01 for name in encoders}
    target = torch.arange(12) % 3
    mild = AdversarialTraining(LossAscent(Budget(1e-3)))
    mild.transform(module, inputs, target)
    message = r"LossAscent made those of [1-9]\d* of 12 samples NaN or infinite by its changes of \['fou'\]"
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(LossAscent(Budget(5.0))).transform(module, inputs, target)
