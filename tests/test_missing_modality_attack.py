# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
from itertools import combinations

import pytest
import torch
from support.linear_model import Linear, predict, samples
from support.nets import Net
from torch import nn

from lightning_crmt import FusionOutput, LinearFusion
from lightning_crmt.attacks import MissingModality, mean_inputs

THREE = {"audio": (5,), "image": (2, 3), "touch": (4,)}


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = LinearFusion({n: torch.Size(s).numel() for n, s in THREE.items()}, 4)
        nn.init.normal_(self.head.bias)

    def forward(self, inputs):
        return self.head({n: v.flatten(1) for n, v in inputs.items()})


def by_hand(model, x, subset, stand):
    return model({n: stand[n].expand_as(v) if n in subset else v for n, v in x.items()})


@pytest.mark.parametrize("most", [1, 2, None])
@pytest.mark.parametrize("fill", ["zeroed", "values"])
def test_each_sample_loses_what_it_can_bear_least(most, fill):
    model, x = Linear(sizes=THREE), samples(40, sizes=THREE)
    y = predict(model, x)
    stand = {n: torch.full(THREE[n], 0.0 if fill == "zeroed" else i - 0.5).double() for i, n in enumerate(THREE)}
    attack = MissingModality("zeroed" if fill == "zeroed" else stand, max_missing=most)
    logits = attack.logits(model, x, y)
    subsets = [subset for size in range((most or 2) + 1) for subset in combinations(THREE, size)]
    every = torch.stack([by_hand(model, x, subset, stand).detach() for subset in subsets])
    lead = every.scatter(2, y.expand(len(every), -1)[..., None], -torch.inf).amax(2) - every[:, range(40), y]
    assert logits.equal(every[lead.argmax(dim=0), range(40)])
    assert (lead.argmax(dim=0) > 0).any()
    assert attack(model, x, y).keys() == x.keys()
    assert torch.allclose(model(attack(model, x, y)).detach(), logits)
    gone = attack.missing(model, x, y)
    assert (torch.stack(list(gone.values())).sum(dim=0) <= (most or 2)).all()
    for i in range(40):
        assert tuple(n for n in THREE if gone[n][i]) == subsets[int(lead[:, i].argmax())]


def test_dropping_is_leaving_out_of_the_fusion():
    model, x = Late(), samples(40, sizes=THREE, dtype=torch.float32)
    y = model(x).logits.argmax(dim=1)
    attack = MissingModality("dropped")
    # Scores are linear without a bias of their own, so that an input of zeros is the same as no score.
    assert torch.allclose(attack.logits(model, x, y), MissingModality().logits(model, x, y), atol=1e-6)
    with pytest.raises(TypeError, match="dropped from the fusion has no input; call `logits`"):
        attack(model, x, y)
    wrapped = nn.Module()
    wrapped.module = model
    wrapped.forward = model.forward
    assert attack.logits(wrapped, x, y).equal(attack.logits(model, x, y))
    with pytest.raises(TypeError, match=r"needs a model with a fusion head.*got a NoneType"):
        attack.logits(lambda inputs: FusionOutput(model(inputs).logits, {}), x, y)
    model.forward = lambda inputs: {"logits": model.head({n: v.flatten(1) for n, v in inputs.items()}).logits}
    with pytest.raises(TypeError, match=r"got a LinearFusion and a dict with keys .*; use 'zeroed'"):
        attack.logits(model, x, y)


def test_only_those_named_are_ever_missing():
    x, y = samples(sizes=THREE), torch.zeros(20, dtype=torch.long)
    model = Linear(sizes=THREE)
    assert MissingModality(modalities=["touch"]).missing(model, x, y).keys() == {"touch"}
    found = MissingModality({"image": 0.3})(model, x, y)
    assert found["audio"] is x["audio"]
    assert found["touch"] is x["touch"]
    rows = (found["image"] != x["image"]).flatten(1).any(dim=1)
    assert 0 < rows.sum() < 20
    assert (found["image"][rows] == 0.3).all()


def test_tokens_can_be_missing_too():
    class Tokens(nn.Module):
        def forward(self, inputs):
            return inputs["image"] + nn.functional.one_hot(inputs["text"], 3).sum(dim=1)

    x = {"text": torch.tensor([[1, 1], [2, 2]]), "image": torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]])}
    y = torch.tensor([1, 2])
    found = MissingModality(modalities=["text"])(Tokens(), x, y)
    assert (found["text"] == 0).all()
    assert found["image"] is x["image"]


@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_everything_is_left_as_it_was(surroundings):
    model = Net().train()
    with surroundings():
        x, y = samples(dtype=torch.float32), torch.zeros(20, dtype=torch.long)
        copies, random = {n: v.clone() for n, v in x.items()}, torch.get_rng_state()
        modes, trained = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        state = {n: v.clone() for n, v in model.state_dict().items()}
        MissingModality()(model, x, y)
        assert torch.get_rng_state().equal(random)
        assert all(v.equal(copies[n]) for n, v in x.items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(v.equal(state[n]) for n, v in model.state_dict().items())


def test_batches_may_be_split():
    model, x = Linear(sizes=THREE), samples(sizes=THREE)
    y = predict(model, x)
    whole = MissingModality().logits(model, x, y)
    for rows in torch.arange(20).split(7):
        part = MissingModality().logits(model, {n: v[rows] for n, v in x.items()}, y[rows])
        assert torch.allclose(part, whole[rows])


def test_the_former_name_of_fill():
    with pytest.warns(DeprecationWarning, match="`represent` is called `fill` now"):
        assert MissingModality(represent={"audio": 0.5}).fill == {"audio": 0.5}


def test_inputs_are_filled_and_subsets_go_by_name():
    attack, x = MissingModality({"image": 0.5}), samples(sizes=THREE)
    assert attack.subsets(["audio", "image"]) == [(), ("image",)]
    filled = attack.filled(x, ["image"])
    assert filled["audio"] is x["audio"]
    assert (filled["image"] == 0.5).all()
    model = Linear(sizes=THREE)
    assert attack.logits_without(model, x, ["image"]).equal(model(filled))


def test_means():
    loader = [({"audio": torch.ones(3, 2), "text": torch.ones(3, 2).long()}, torch.zeros(3))]
    loader += [({"audio": torch.full((1, 2), 5.0), "text": torch.ones(1, 2).long()}, torch.zeros(1))]
    assert mean_inputs(loader)["audio"].tolist() == [2.0, 2.0]
    assert mean_inputs(loader).keys() == {"audio"}
    with pytest.raises(ValueError, match="`batches` must hold at least one sample"):
        mean_inputs([])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x, y: MissingModality("gone"), ValueError, "`fill` must be 'zeroed', 'dropped' or values"),
        (lambda x, y: MissingModality(max_missing=0), ValueError, "`max_missing` must be at least 1, got 0"),
        (lambda x, y: MissingModality(modalities="audio"), TypeError, "a sequence of names, got the string 'audio'"),
        (lambda x, y: MissingModality({"audio": 0.0}, modalities=["image"]), ValueError, "got none for \\['image'\\]"),
        (lambda x, y: MissingModality({"smell": 0.0})(Linear(), x, y), ValueError, "got \\['smell'\\]"),
        (
            lambda x, y: MissingModality({"audio": [0.0]})(Linear(), x, y),
            ValueError,
            "the shape \\(5,\\).*got \\(1,\\)",
        ),
        (lambda x, y: MissingModality()(Linear(), x, y + 9), ValueError, "class indices from 0 to 3"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make(samples(), torch.zeros(20, dtype=torch.long))
