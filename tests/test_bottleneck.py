# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient norms of many classes by way of a narrow vector, against those taken class by class."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_crmt import CRMTModule, LinearFusion, estimate_lipschitz, keep_scores
from lightning_crmt.encoders import MLP, ConvNet2d
from lightning_crmt.lipschitz import label_speeds
from lightning_crmt.lipschitz.bottleneck import bottleneck, narrow_norms, narrow_width

CLASSES = 30
SHAPES = {"image": (3, 16, 16), "audio": (40,)}


class Late(nn.Module):
    """Encoders and a linear head, with passes through the first layer of ``audio`` counted."""

    def __init__(self, audio, sizes):
        super().__init__()
        self.encoders = nn.ModuleDict({"image": ConvNet2d(3, sizes["image"], (8, 6)), "audio": audio})
        self.head = LinearFusion(sizes, CLASSES)

    def forward(self, inputs):
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


def model(audio=None, width=7, dtype=torch.float32):
    torch.manual_seed(0)
    return Late(audio or MLP(40, width, (16,)), {"image": 50, "audio": width}).to(dtype).eval()


def batch(size=12, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, *shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def class_by_class(scores, leaf):
    """The norms, by one backward pass for each class."""
    gradients = [torch.autograd.grad(score.sum(), leaf, retain_graph=True)[0] for score in scores.unbind(1)]
    return torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients], dim=1)


class Residual(nn.Module):
    """Ways that part and meet again before the last layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(40, 40), nn.Linear(40, 5), nn.Linear(5, 7)

    def forward(self, x):
        hidden = self.first(x).relu() + x
        return self.last((self.second(hidden).tanh() * self.second(x).sigmoid()).softmax(dim=1))


class Split(nn.Module):
    """A narrow vector that is cut in two and joined again, by a node with two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(40, 6), nn.Linear(6, 7)

    def forward(self, x):
        one, other = self.first(x).split([2, 4], dim=1)
        return self.last(torch.cat([one.relu(), other.square()], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [lambda: MLP(40, 7, (16,)), lambda: MLP(40, 7, (3,)), Residual, Split])
def test_norms_are_those_of_every_class(make, dtype):
    torch.manual_seed(1)
    net, inputs = model(make(), dtype=dtype), batch(dtype=dtype)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    scores = net(leaves).scores
    for name, leaf in leaves.items():
        norms = narrow_norms(scores[name], leaf)
        assert norms is not None
        assert norms.dtype is dtype
        tolerance = 1e-4 if dtype is torch.float32 else 1e-10
        assert_close(norms, class_by_class(scores[name], leaf), rtol=tolerance, atol=tolerance * float(norms.max()))


@pytest.mark.parametrize(("make", "width"), [(lambda: MLP(40, 7, (3,)), 3), (Residual, 5), (Split, 6)])
def test_the_narrowest_vector_that_all_ways_pass(make, width):
    net, leaves = model(make()), {name: value.requires_grad_() for name, value in batch().items()}
    scores = net(leaves).scores
    assert narrow_width(scores["audio"], leaves["audio"]) == width
    assert narrow_width(scores["image"], leaves["image"]) == 6  # channels of the last convolution, averaged
    assert bottleneck(scores["audio"], leaves["image"]) is None  # which they do not depend on


def test_a_way_around_every_vector_leaves_none():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Linear(40, 3), nn.Linear(3, CLASSES)

        def forward(self, x):
            return self.wide(self.narrow(x)) + x[:, :CLASSES]

    net, x = Around(), batch()["audio"].requires_grad_()
    assert narrow_norms(net(x), x) is None


@pytest.mark.parametrize(
    "scores", [lambda x: x.detach() @ torch.ones(40, CLASSES), lambda x: x[:, :CLASSES], lambda x: x.sum() + x[:, :30]]
)
def test_nothing_narrow_is_found_where_nothing_is(scores):
    x = batch()["audio"].requires_grad_()
    assert narrow_norms(scores(x), x) is None


def test_a_vector_that_is_hardly_narrower_than_the_classes_does_not_pay():
    x = batch()["audio"].requires_grad_()
    for width, pays in ((22, True), (23, False)):
        torch.manual_seed(0)
        scores = nn.Sequential(nn.Linear(40, width), nn.Tanh(), nn.Linear(width, CLASSES))(x)
        assert (narrow_norms(scores, x) is not None) is pays


def test_gradients_that_take_too_much_memory_are_not_held():
    x = batch()["audio"].requires_grad_()
    scores = nn.Sequential(nn.Linear(40, 3), nn.Linear(3, CLASSES))(x)
    samples = 2**26 // (3 * x.numel())
    assert narrow_width(scores, x, samples) == 3
    assert narrow_width(scores, x, samples + 1) is None


class Sorted(nn.Module):
    """Samples change places on their way, and back behind a narrow vector, as packed sequences do."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(40, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 7))

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.last(self.first(x[order]))[order.argsort()]


def test_samples_that_change_places_are_noticed():
    net, inputs = model(Sorted()), batch()
    leaf = inputs["audio"].clone().requires_grad_()
    scores = net({**inputs, "audio": leaf}).scores["audio"]
    assert narrow_width(scores, leaf) == 3
    assert narrow_norms(scores, leaf) is None
    expected = class_by_class(scores, leaf).amax(dim=0)
    assert_close(estimate_lipschitz(net, [inputs]).values["audio"], expected)


def test_gradients_that_are_not_finite_are_left_to_the_classes():
    net, inputs = model(), batch()
    nn.init.constant_(net.encoders["audio"].layers[1].weight, torch.nan)
    with pytest.raises(ValueError, match=r"gradients with respect to `inputs\['audio'\]` must be finite"):
        estimate_lipschitz(net, [inputs])


def test_stand_ins_for_absent_samples_do_not_count():
    torch.manual_seed(0)
    encoders = {"image": ConvNet2d(3, 40, (8, 6)), "audio": MLP(40, 40, (6,))}
    net = CRMTModule(encoders, num_classes=CLASSES).eval()
    here = torch.arange(12) % 3 == 0
    inputs = {**batch(), "audio.present": here}
    leaf = inputs["audio"].clone().requires_grad_()
    scores = net({**inputs, "audio": leaf}).scores["audio"]
    norms = narrow_norms(scores, leaf)
    assert norms is not None
    assert_close(norms, class_by_class(scores, leaf), rtol=1e-4, atol=1e-6)
    assert not norms[~here].any()
    alone = {name: value[here] for name, value in batch().items()}
    found = estimate_lipschitz(net, [inputs]).values["audio"]
    assert_close(found, estimate_lipschitz(net, [alone]).values["audio"])


def test_an_estimate_takes_no_more_passes_than_it_must():
    net, passes = model(), []

    def count(module, args, output):
        output.register_hook(lambda gradient: passes.append(len(gradient)))

    net.encoders["audio"].layers[1].register_forward_hook(count)
    found = estimate_lipschitz(net, [batch()]).values
    assert len(passes) <= 7 + 2  # the width, a check of it, a check of crossed modalities
    leaves = {name: value.requires_grad_() for name, value in batch().items()}
    scores = net(leaves).scores
    assert_close(found, {name: class_by_class(scores[name], leaf).amax(dim=0) for name, leaf in leaves.items()})


def test_only_the_modality_with_a_narrow_way_takes_it():
    net, inputs = model(width=40), batch()  # of 40 features, more than classes
    net.encoders["audio"] = nn.Sequential(nn.Linear(40, 40), nn.Tanh())
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    scores = net(leaves).scores
    assert [narrow_norms(scores[name], leaves[name]) is None for name in SHAPES] == [False, True]
    expected = {name: class_by_class(scores[name], leaf).amax(dim=0) for name, leaf in leaves.items()}
    assert_close(estimate_lipschitz(net, [inputs]).values, expected)


def test_labels_of_all_inputs_together():
    net, leaves = model(), {name: value.requires_grad_() for name, value in batch().items()}
    logits = net(leaves).logits
    expected = {name: class_by_class(logits, leaf) for name, leaf in leaves.items()}
    assert all(narrow_norms(logits, leaf) is not None for leaf in leaves.values())
    assert_close(label_speeds(logits, leaves), expected)


def test_parts_of_a_batch_give_what_the_batch_gives(monkeypatch):
    net, inputs, target = model(), batch(50), torch.arange(50) % CLASSES
    whole = keep_scores(net, [(inputs, target)])
    monkeypatch.setattr("lightning_crmt.lipschitz.estimate._CACHED", 1)  # no more samples at once than the least
    sizes = []
    net.encoders["audio"].register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    parts = keep_scores(net, [(inputs, target)])
    assert sizes == [8] * 6 + [2]
    assert_close(parts.scores, whole.scores)
    assert_close(parts.constants.values, whole.constants.values)
    assert parts.target.equal(target)
