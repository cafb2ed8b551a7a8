# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_crmt import CRMTModule, LinearFusion, LipschitzConstants, OrthogonalFusion, Soundness
from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, RadiusTraining
from lightning_crmt.cli import main
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.losses import EMMA, Hinge, LogitAnnealing, radius_loss


def problem(kind, dtype, modalities=2):
    torch.manual_seed(0)
    sizes = {f"m{i}": 5 + i for i in range(modalities)}
    head = kind(sizes, 4).to(dtype)
    with torch.no_grad():
        for parameter in head.integration_parameters():
            parameter.uniform_(0.2, 2)
        head.bias.normal_()
    features = {name: torch.randn(6, size, dtype=dtype) for name, size in sizes.items()}
    constants = {name: torch.tensor(0.5 + i, dtype=dtype) for i, name in enumerate(sizes)}
    return head, features, LipschitzConstants(constants, of="encoder", soundness=Soundness.SOUND)


def hinge_by_loops(rivals, wanted, temperature):
    return math.log1p(sum(math.exp(temperature * (wanted - margin / slope)) for margin, slope in rivals))


def attacked_by_loops(rivals, wanted):
    return [wanted * min(max(margin / (wanted * slope), 0.01), 1) * slope - margin for margin, slope in rivals]


def emma_by_loops(rivals, wanted):
    return math.log1p(sum(math.exp(lead) for lead in attacked_by_loops(rivals, wanted)))


def annealing_by_loops(rivals, wanted, temperature, offset, focus):
    c = math.log1p(sum(math.exp((lead + offset) / temperature) for lead in attacked_by_loops(rivals, wanted)))
    return temperature * (1 - math.exp(-c)) ** focus * c


def by_loops(head, features, lipschitz, target, radius, rho, soft):
    """The formula of the docstring, sample by sample, rival by rival."""
    rows = {name: w.tolist() for name, w in head.class_weights.items()}
    bias, total = head.bias.tolist(), 0.0

    for i, y in enumerate(target.tolist()):
        joint, alone = [], {name: [] for name in rows}
        for j in range(4):
            if j == y:
                continue
            margin, squares = bias[y] - bias[j], 0.0
            for name, w in rows.items():
                z = features[name][i].tolist()
                own = sum((p - q) * v for p, q, v in zip(w[y], w[j], z, strict=True))
                slope = lipschitz.values[name].item() * math.dist(w[y], w[j])
                margin, squares = margin + own, squares + slope**2
                alone[name].append((own, slope))
            joint.append((margin, math.sqrt(squares)))
        total += soft(joint, radius) + rho * sum(soft(rivals, radius / 2) for rivals in alone.values())
    return total / len(target)


@pytest.mark.parametrize("kind", [LinearFusion, OrthogonalFusion])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("modalities", [1, 3])
def test_the_loss_is_the_formula(kind, dtype, modalities):
    head, features, lipschitz = problem(kind, dtype, modalities)
    target = torch.arange(6) % 4
    settings = {"radius": 0.3, "rho": 0.7}
    loss = radius_loss(head(features), target, head, lipschitz, temperature=4.0, **settings)
    expected = by_loops(head, features, lipschitz, target, **settings, soft=partial(hinge_by_loops, temperature=4.0))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


OBJECTIVES = [
    (Hinge(7.0), partial(hinge_by_loops, temperature=7.0)),
    (EMMA(), emma_by_loops),
    (LogitAnnealing(), partial(annealing_by_loops, temperature=0.75, offset=2.0, focus=5.0)),
    (LogitAnnealing(2.0, 0.5, 1.0), partial(annealing_by_loops, temperature=2.0, offset=0.5, focus=1.0)),
]


@pytest.mark.parametrize(("objective", "slow"), OBJECTIVES)
@pytest.mark.parametrize("radius", [0.05, 0.3, 2.0])
def test_objectives_are_their_formulas(objective, slow, radius):
    head, features, lipschitz = problem(OrthogonalFusion, torch.float64)
    target = torch.arange(6) % 4
    loss = radius_loss(head(features), target, head, lipschitz, radius=radius, rho=0.7, objective=objective)
    expected = by_loops(head, features, lipschitz, target, radius, 0.7, slow)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", [Hinge(3.0), EMMA(), LogitAnnealing()])
def test_its_gradient_is_right(objective):
    head, features, lipschitz = problem(OrthogonalFusion, torch.float64)
    names, target = list(features), torch.arange(6) % 4

    def loss(*values):
        output = head(dict(zip(names, values, strict=True)))
        return radius_loss(output, target, head, lipschitz, radius=1e-3, objective=objective)

    # At so small a radius every share of EMMA is at an end of its range, where it is constant.
    assert torch.autograd.gradcheck(loss, [features[name].requires_grad_(True) for name in names])


def test_the_attack_goes_as_far_as_it_must():
    margins, slopes = torch.tensor([[9.0, 0.3, -1.0, 5.0]]), torch.tensor([[1.0, 2.0, 1.0, 2.0]])
    own = torch.tensor([[True, False, False, False]])
    attacked = EMMA.attacked(margins, slopes, own, radius=0.5)
    # The first rival is made equal, the second wins anyhow, the third is out of reach: it gets all of 0.5 times 2.
    torch.testing.assert_close(attacked, torch.tensor([[-torch.inf, 0.0, 1.005, -4.0]]))


def test_safe_samples_have_no_weight_in_annealing():
    own, slopes = torch.tensor([[True, False]]), torch.ones(1, 2)
    losses = []
    for margin in (0.0, 3.0, 30.0, 300.0):
        margins = torch.tensor([[0.0, margin]], requires_grad=True)
        loss = LogitAnnealing()(margins, slopes, own, 0.2, False)
        (slope,) = torch.autograd.grad(loss.sum(), margins)
        losses.append(loss.item())
        assert slope.isfinite().all()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_objectives_of_labels_are_each_against_zero():
    margins, slopes = torch.tensor([[1.0, -2.0, 0.1]]).double(), torch.tensor([[1.0, 2.0, 0.5]]).double()
    none = torch.zeros(1, 3, dtype=torch.bool)
    rivals = list(zip(margins[0].tolist(), slopes[0].tolist(), strict=True))
    emma = sum(emma_by_loops([rival], 0.4) for rival in rivals) / 3
    assert EMMA()(margins, slopes, none, 0.4, True).item() == pytest.approx(emma)
    annealed = sum(annealing_by_loops([rival], 0.4, 0.75, 2.0, 5.0) for rival in rivals) / 3
    assert LogitAnnealing()(margins, slopes, none, 0.4, True).item() == pytest.approx(annealed)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Hinge(0.0), "temperature"),
        (lambda: LogitAnnealing(temperature=-1.0), "temperature"),
        (lambda: LogitAnnealing(offset=-0.1), "offset"),
        (lambda: LogitAnnealing(focus=math.nan), "focus"),
    ],
)
def test_bad_settings_of_objectives_are_named(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make()


def test_scaling_the_logits_up_changes_nothing():
    head, features, lipschitz = problem(LinearFusion, torch.float64)
    target = torch.arange(6) % 4
    before = radius_loss(head(features), target, head, lipschitz)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(100)
    torch.testing.assert_close(radius_loss(head(features), target, head, lipschitz), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0.0}, "`radius` must be above 0, got 0.0"),
        ({"temperature": -1.0}, "`temperature` must be above 0, got -1.0"),
        ({"rho": -0.1}, "`rho` must be at least 0, got -0.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    head, features, lipschitz = problem(LinearFusion, torch.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        radius_loss(head(features), torch.arange(6) % 4, head, lipschitz, **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        RadiusTraining(**settings)


def model(**settings):
    seed_everything(0, verbose=False)
    encoders = {"fou": LipschitzMLP(76, 16, (16,)), "mor": LipschitzMLP(6, 16, ())}
    optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)  # noqa: E731
    return CRMTModule(encoders, num_classes=10, optimizer=optimizer, **settings)


def test_it_trains_what_is_certified(data, make_trainer):
    def certified(*callbacks):
        trained = model(head=LinearFusion)
        make_trainer(*callbacks, max_epochs=30, limit_val_batches=0).fit(trained, datamodule=data)
        assert trained.training_stage.objective is None
        (found,) = make_trainer(CertifiedRobustness([0.3])).test(trained, datamodule=data, verbose=False)
        return found["test/certified_accuracy/joint@0.3"]

    assert certified(RadiusTraining(0.3)) > certified() + 0.02


def test_step_two_follows(data, make_trainer):
    names = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            names.append(pl_module.stage_objective.name)

    step_2 = IntegrationReweighting(constants="sound")
    make_trainer(RadiusTraining(), step_2, Watch(), max_epochs=2).fit(model(), datamodule=data)
    assert names == ["radius_loss"] * 12
    assert step_2.reweighted.objective[-1] < step_2.reweighted.objective[0]


def test_an_encoder_without_a_bound_is_named(data, make_trainer):
    encoders = {"fou": nn.Sequential(nn.Linear(76, 16), nn.LayerNorm(16)), "mor": MLP(6, 16)}
    odd = CRMTModule(encoders, num_classes=10, in_features={"fou": 16})
    with pytest.raises(ValueError, match="the encoder of 'fou': no Lipschitz bound is known for '1', a LayerNorm"):
        make_trainer(RadiusTraining()).fit(odd, datamodule=data)


def test_an_objective_is_chosen_from_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objective = "{class_path: LogitAnnealing, init_args: {offset: 1.0}}"
    callback = f"{{class_path: RadiusTraining, init_args: {{radius: 0.2, objective: {objective}}}}}"
    settings = "limit_train_batches: 2, limit_val_batches: 0, max_epochs: 1, logger: false, enable_checkpointing: false"
    (tmp_path / "run.yaml").write_text(f"trainer: {{{settings}, callbacks: [{callback}]}}\n")
    example = Path(__file__).parent.parent / "examples" / "mfeat_certified.yaml"
    trained = []
    monkeypatch.setattr(RadiusTraining, "on_train_end", lambda self, *_: trained.append(self.objective))
    words = ["fit", "--config", str(example), "--config", "run.yaml", "--trainer.enable_progress_bar=false"]
    monkeypatch.setattr("sys.argv", ["lightning-crmt"])
    main(words)
    assert trained == [LogitAnnealing(offset=1.0)]
