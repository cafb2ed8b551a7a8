# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.linear_model import THREATS, Counting, Detaching, Linear, distances, predict, samples
from support.nets import Net
from torch import nn

from lightning_crmt.attacks import PGD, Budget, paper_pgd


@pytest.mark.parametrize("threat", THREATS)
def test_it_succeeds_just_above_the_distance_and_fails_just_below(threat):
    make, exact = THREATS[threat]
    model, x = Linear(), samples(12)
    y = predict(model, x)
    distance = distances(model, x, **exact)
    reachable = distance.isfinite()
    assert reachable.sum() > 6
    distance = distance.where(reachable, 1.0)
    above = PGD(make(1.005 * distance), targeted=True)(model, x, y)
    assert (predict(model, above) != y)[reachable].all()
    below = PGD(make(0.999 * distance), targeted=True)(model, x, y)
    assert (predict(model, below) == y).all()


def test_inputs_that_require_grad_stay_leaves_without_one():
    x = {n: v.requires_grad_(True) for n, v in samples(dtype=torch.float32).items()}
    found = PGD(Budget(1.0, modalities=["audio"]), steps=2)(Net(), x, torch.zeros(20, dtype=torch.long))
    assert all(v.requires_grad and v.grad is None for v in x.values())
    assert found["image"] is x["image"]


def test_no_more_passes_than_needed():
    model, x = Counting(), samples()
    y = predict(model, x)
    model.seen.clear()
    PGD(Budget(1e-6), steps=10)(model, x, y)
    assert model.seen == [20] * 12  # the clean inputs, ten gradients, the verdict
    model.seen.clear()
    PGD(Budget(1e6), steps=10, restarts=5, targeted=True)(model, x, y)
    assert sum(model.seen) <= 20 * 5  # all fall at once: clean, two gradients, verdict


def test_what_fell_is_not_searched_again():
    model, x = Counting(), samples()
    y = predict(model, x)
    radius = torch.full((20,), 1e6)
    radius[7] = 1e-6
    model.seen.clear()
    PGD(Budget(radius), steps=3, restarts=2)(model, x, y)
    # Clean, two gradients of all, one of the one that stands, the verdict of all; then a second start for the one.
    assert model.seen == [20] * 3 + [1] + [20] + [1] * 4


def test_an_integer_modality_that_is_not_attacked_is_no_obstacle():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.image = nn.Embedding(7, 4), nn.Linear(6, 4)

        def forward(self, inputs):
            return self.embedding(inputs["text"]).mean(dim=1) + self.image(inputs["image"])

    torch.manual_seed(0)
    model, x = Tokens(), {"text": torch.arange(14).reshape(2, 7) % 7, "image": torch.ones(2, 6)}
    y = predict(model, x)
    with torch.inference_mode():
        found = PGD(Budget(100.0, modalities=["image"]))(model, x, y)
    assert found["text"] is x["text"]
    assert (predict(model, found) != y).all()
    with pytest.raises(TypeError, match="`inputs\\['text'\\]` must be floating point"):
        PGD(Budget(1.0))(model, x, y)


def test_a_plain_function_can_be_attacked():
    model, x = Linear(), samples()
    y = predict(model, x)
    found = PGD(Budget(1e3))(lambda inputs: model(inputs), x, y)
    assert (predict(model, found) != y).all()


class Deaf(Linear):
    def forward(self, inputs):
        return super().forward({n: torch.zeros_like(v) if n == "audio" else v for n, v in inputs.items()})


@pytest.mark.parametrize("budget", [Budget(1.0), Budget(1.0, modalities=["audio"])])
def test_a_model_that_detaches_one_modality_is_found_out(budget):
    x, y = samples(), torch.zeros(20, dtype=torch.long)
    with pytest.raises(RuntimeError, match="depend on 'audio' but carry no gradient to it"):
        PGD(budget, steps=2)(Detaching(), x, predict(Detaching(), x))
    PGD(budget, steps=2)(Deaf(), x, y)  # not using it is another matter


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(Budget(1.0), steps=0), "`steps` must be at least 1, got 0"),
        (lambda: PGD(Budget(1.0), restarts=0), "`restarts` must be at least 1"),
        (lambda: PGD(Budget(1.0), loss="cw"), "`loss` must be 'margin', 'ce' or 'dlr', got 'cw'"),
        (lambda: PGD(Budget(1.0), loss="ce", targeted=True), "`targeted` needs loss='margin'"),
        (lambda: PGD(Budget(1.0), step_size=0.0), "`step_size` must be above 0"),
        (lambda: PGD(Budget(1.0), momentum=1.0), "`momentum` must be at least 0 and below 1, got 1.0"),
        (lambda: PGD(Budget(1.0), decay=0.0), "`decay` must be above 0 and at most 1, got 0.0"),
        (lambda: PGD(Budget(1.0), targeted=True, classes=0), "`classes` must be at least 1, got 0"),
        (lambda: PGD(Budget(1.0), classes=2), "`classes` needs targeted=True"),
        (lambda: PGD(Budget(1.0))(Linear(), samples(), torch.zeros(3, dtype=torch.long)), "shape \\(20,\\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_that_is_no_tensor():
    with pytest.raises(TypeError, match="`target` must be a tensor of integer class indices, got a list"):
        PGD(Budget(1.0))(Linear(), samples(), [0] * 20)


@pytest.mark.parametrize(("targeted", "least"), [(False, 3), (True, 4)])
def test_the_dlr_loss_needs_enough_classes(targeted, least):
    x, y = samples(), torch.zeros(20, dtype=torch.long)
    attack = PGD(Budget(1e-3), steps=2, loss="dlr", targeted=targeted)
    attack(Linear(least), x, y)
    with pytest.raises(ValueError, match=f"needs a model of at least {least} classes, got {least - 1}; use 'margin'"):
        attack(Linear(least - 1), x, y)


@pytest.mark.parametrize("loss", ["margin", "ce", "dlr"])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_losses_but_cross_entropy_do_not_mind_the_scale_of_logits(loss, scale):
    """At a thousand times the scale, cross-entropy in single precision has no gradient left where it is sure."""
    model, x = Linear(dtype=torch.float32), samples(dtype=torch.float32)
    y, attack = predict(model, x), PGD(Budget(0.5), steps=10, loss=loss)
    fooled = predict(model, attack(model, x, y)) != y
    scaled = predict(model, attack(lambda inputs: scale * model(inputs), x, y)) != y
    assert fooled.sum() > 4
    if loss == "ce" and scale > 1:
        assert scaled.sum() < fooled.sum()
    else:
        assert scaled.sum() >= fooled.sum() - 1


def test_a_tiny_gradient_is_still_a_direction():
    model, x = Linear(dtype=torch.float32), samples(dtype=torch.float32)
    y = predict(model, x)
    found = PGD(Budget(1.0), steps=5)(lambda inputs: 1e-36 * model(inputs), x, y)
    expected = PGD(Budget(1.0), steps=5)(model, x, y)
    assert (predict(model, found) != y).sum() == (predict(model, expected) != y).sum() > 4


def test_the_papers_steps_are_a_third_of_the_radius():
    """On a linear model of two classes the way is straight; the fourth gradient is taken on the border."""
    model, x = Linear(2), samples()
    y, seen = predict(model, x), []

    def watched(inputs):
        seen.append(torch.cat([(inputs[n] - x[n]).flatten(1) for n in x], dim=1).norm(dim=1).detach())
        return model(inputs) + 30 * nn.functional.one_hot(y, 2)

    paper_pgd(Budget(0.6))(watched, x, y)
    assert torch.allclose(torch.stack(seen[1:5]).amax(dim=1), torch.tensor([0.0, 0.2, 0.4, 0.6], dtype=torch.float64))
    assert len(seen) == 6  # the clean inputs, four gradients, the verdict
