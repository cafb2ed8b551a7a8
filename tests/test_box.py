# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.linear_model import Linear, predict

from lightning_crmt.attacks import APGD, PGD, Box, Budget, MinimumNorm, RandomSearch

MEAN, STD = [0.5, 0.4], [0.25, 0.2]
SIZES = {"image": (2, 3, 3), "audio": (4,)}


def batch(dtype=torch.float32, size=20):
    """Pixels in [0, 1], some of them at its ends, normalised in single precision as torch's transforms do."""
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand((size, 2, 3, 3), generator=generator) * 1.4 - 0.2).clamp(0, 1)
    normal = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return {"image": normal.to(dtype), "audio": torch.randn((size, 4), generator=generator).to(dtype)}


def pixels_of(image):
    return image.double() * torch.tensor(STD).double()[:, None, None] + torch.tensor(MEAN).double()[:, None, None]


@pytest.mark.parametrize("attack", [PGD, APGD, RandomSearch])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pixels_stay_pixels(attack, dtype, norm):
    """Also where the same numbers come in another precision than they were normalised in."""
    model, x = Linear(sizes=SIZES, dtype=torch.float32 if dtype is torch.bfloat16 else dtype), batch()
    x = {n: v.to(dtype) for n, v in x.items()} if dtype is not torch.bfloat16 else x
    budget = Budget(0.7, norm=norm, box={"image": Box(0.0, 1.0, mean=MEAN, std=STD)})
    y = predict(model, x)
    found = attack(budget, steps=20)(model, x, y)
    pixels = pixels_of(found["image"])
    assert -1e-6 < pixels.min() < 1e-3  # the box is used up to its ends
    assert 1 - 1e-3 < pixels.max() < 1 + 1e-6
    assert (predict(model, found) != y).any()
    assert all(v.equal(x[n]) for n, v in attack(budget.scaled(0.0), steps=2)(model, x, y).items())


def test_the_same_as_a_box_in_the_models_units():
    model, x = Linear(sizes=SIZES), batch(torch.float64)
    y = predict(model, x)
    one = {"image": Box(0.0, 1.0, mean=0.5, std=0.25)}
    other = {"image": (-2.0, 2.0)}
    x["image"] = x["image"].clamp(-2, 2)
    found = [MinimumNorm(Budget(1.0, box=box), steps=10).search(model, x, y) for box in (one, other)]
    assert found[0].factor.equal(found[1].factor)


def test_one_value_for_each_feature_of_a_vector():
    low, high = Box(0.0, 1.0, mean=[0.0, 1.0, 2.0, 3.0], std=1.0).bounds(torch.zeros(5, 4))
    assert low.tolist() == [[0.0, -1.0, -2.0, -3.0]]
    assert high.tolist() == [[1.0, 0.0, -1.0, -2.0]]


def test_one_open_end():
    model, x = Linear(sizes=SIZES), batch(torch.float64)
    y = predict(model, x)
    lowest = x["image"].min().item()
    found = PGD(Budget(2.0, box={"image": (lowest, float("inf"))}))(model, x, y)
    assert found["image"].min() >= lowest
    assert found["image"].max() > x["image"].max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(1.0, 1.0), "low < high, got \\(1.0, 1.0\\)"),
        (lambda: Box(0.0, 1.0, std=0.0), "`std` must be above 0"),
        (lambda: Box(0.0, 1.0, std=[0.1, -0.1]), "`std` must be above 0.*got \\[0.1, -0.1\\]"),
        (lambda: Box(0.0, 1.0, mean=float("nan")), "`mean` must be a finite number"),
        (lambda: Box(0.0, 1.0, mean=[0.1], std=[0.1, 0.2]), "for one number of channels, got 1 and 2"),
        (
            lambda: Budget(1.0, box={"image": Box(0.0, 1.0, mean=[0.0] * 3)}).attacked(batch()),
            "for 3 channels needs inputs of shape \\(B, 3, ...\\), got a float32 tensor of shape \\(20, 2, 3, 3\\)",
        ),
        (
            lambda: Budget(1.0, box={"image": Box(0.0, 0.9, MEAN, STD)}).attacked(batch()),
            "`inputs\\['image'\\]` must lie in its box Box\\(0.0, 0.9",
        ),
    ],
)
def test_bad_boxes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
