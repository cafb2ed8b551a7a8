# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Fusions in which modalities interact: their formulas, their scores, and what may be claimed of them."""

from functools import partial

import pytest
import torch

from lightning_crmt import CRMTModule, certify, estimate_lipschitz, margin_regularization
from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, MissingModalities, RadiusTraining
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import AttentionFusion, FiLMFusion, GatedFusion
from lightning_crmt.soundness import Soundness

SIZES = {"a": 5, "b": 6, "c": 7}
FAST = partial(torch.optim.AdamW, lr=1e-2)
HEADS = [GatedFusion, FiLMFusion, AttentionFusion]


def features(batch_size=4, sizes=SIZES):
    torch.manual_seed(1)
    return {name: torch.randn(batch_size, size) for name, size in sizes.items()}


@pytest.fixture(params=HEADS)
def kind(request):
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("scores", ["ablated", "auxiliary"])
def test_scores_are_of_one_modality_alone(kind, scores):
    head, z = kind(SIZES, 3, scores=scores).eval(), features()
    output = head(z)
    assert output.logits.shape == (4, 3)
    assert output.features.keys() == z.keys()
    for name in z:
        moved = head({**{n: v + 1 for n, v in z.items()}, name: z[name]})
        assert torch.allclose(moved.scores[name], output.scores[name], atol=1e-6)
        assert not torch.allclose(moved.logits, output.logits, atol=1e-3)
        own = head({**z, name: z[name] + 1})
        assert not torch.allclose(own.scores[name], output.scores[name], atol=1e-3)


def test_the_order_of_the_mapping_does_not_matter(kind):
    head, z = kind(SIZES, 3).eval(), features()
    assert head(dict(reversed(z.items()))).logits.equal(head(z).logits)


def test_samples_do_not_influence_each_other(kind):
    head, z = kind(SIZES, 3).eval(), features()
    one = head({name: value[1:2] for name, value in z.items()})
    assert torch.allclose(one.logits, head(z).logits[1:2], atol=1e-6)


def test_every_parameter_learns(kind):
    head, z = kind(SIZES, 3), features()
    output = head(z)
    loss = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0]))
    (loss + margin_regularization(output.scores, torch.tensor([0, 1, 2, 0]))).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


@torch.no_grad()
def test_gates_by_loops():
    head, z = GatedFusion(SIZES, 3, width=2).double(), {n: v.double() for n, v in features(2).items()}

    def slow(sample, names):
        context = [float(x) if n in names else 0.0 for n in SIZES for x in sample[n]]
        v = [0.0, 0.0]
        for n in names:
            for i in range(2):
                gate = float(head.gates[n].bias[i])
                gate += sum(float(w) * x for w, x in zip(head.gates[n].weight[i], context, strict=True))
                value = sum(float(w) * float(x) for w, x in zip(head.values[n].weight[i], sample[n], strict=True))
                v[i] += float(torch.tensor(gate).sigmoid()) * float(torch.tensor(value).tanh())
        rows, bias = head.classifier.weight, head.classifier.bias
        return [float(bias[k]) + sum(float(rows[k, i]) * v[i] for i in range(2)) for k in range(3)]

    output = head(z)
    for i in range(2):
        sample = {n: value[i] for n, value in z.items()}
        assert output.logits[i].tolist() == pytest.approx(slow(sample, list(SIZES)), abs=1e-6)
        assert output.scores["b"][i].tolist() == pytest.approx(slow(sample, ["b"]), abs=1e-6)


def test_modulation_by_hand():
    head = FiLMFusion({"a": 1, "b": 1}, 2, base="b", width=1)
    with torch.no_grad():
        for layer, weight in [(head.value, [[2.0]]), (head.modulation["a"], [[3.0], [5.0]]), (head.classifier, 0)]:
            layer.weight.copy_(torch.tensor([[1.0], [-1.0]]) if layer is head.classifier else torch.tensor(weight))
            layer.bias.zero_()
    output = head({"a": torch.tensor([[0.5]]), "b": torch.tensor([[1.0]])})
    # v = (1 + 3 * 0.5) * 2 + 5 * 0.5
    assert output.logits.tolist() == [[7.5, -7.5]]
    assert output.scores["b"].tolist() == [[2.0, -2.0]]
    assert output.scores["a"].tolist() == [[2.5, -2.5]]


def test_attention_takes_sequences_in_any_order_of_tokens():
    torch.manual_seed(0)
    head = AttentionFusion({"a": 5, "b": 6}, 3, own_layers=2).eval()
    z = {"a": torch.randn(4, 7, 5), "b": torch.randn(4, 6)}
    output = head(z)
    shuffled = head({**z, "a": z["a"][:, torch.randperm(7)]})
    assert torch.allclose(shuffled.logits, output.logits, atol=1e-5)
    longer = head({**z, "a": torch.cat([z["a"], z["a"][:, :1]], dim=1)})
    assert not torch.allclose(longer.logits, output.logits, atol=1e-5)
    assert torch.allclose(longer.scores["b"], output.scores["b"], atol=1e-6)


def fitted(make_trainer, data, head, *callbacks):
    torch.manual_seed(0)
    module = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10, rho=0.3, head=head, optimizer=FAST)
    trainer = make_trainer(*callbacks, max_epochs=2)
    trainer.fit(module, data)
    return module, trainer.callback_metrics


def test_crmt_training_and_observers_work(kind, make_trainer, data):
    observers = CertifiedRobustness([0.1], constants="estimated"), MissingModalities()
    _, metrics = fitted(make_trainer, data, kind, *observers)
    assert metrics["val/accuracy/joint"] > 0.3
    assert metrics["val/accuracy/fou"] > 0.1
    assert metrics["val/estimated_accuracy/joint@0.1"] >= 0
    assert "val/certified_accuracy/joint@0.1" not in metrics


def test_constants_of_scores_say_nothing_of_the_logits(kind):
    module = CRMTModule({"a": MLP(5, 8), "b": MLP(6, 8)}, num_classes=3, head=kind).eval()
    inputs = {"a": torch.randn(20, 5), "b": torch.randn(20, 6)}
    with pytest.raises(ValueError, match="`head` must be late fusion with Lipschitz constants of scores"):
        certify(module(inputs), module.head, estimate_lipschitz(module, [inputs], of="scores"))


def test_nothing_is_certified(kind, make_trainer, data):
    with pytest.raises(TypeError, match=rf"needs late fusion .*got a {kind.__name__}: choose constants='estimated'"):
        fitted(make_trainer, data, kind, CertifiedRobustness([0.1]))
    with pytest.raises(TypeError, match=rf"'dropped'` needs late fusion.*got a {kind.__name__}: use 'zeroed'"):
        fitted(make_trainer, data, kind, MissingModalities("dropped"))
    for callback in (IntegrationReweighting(epochs=1), RadiusTraining()):
        with pytest.raises(TypeError, match="needs late fusion"):
            fitted(make_trainer, data, kind, callback)


def test_the_radius_of_margins_is_an_estimate(kind):
    torch.manual_seed(0)
    module = CRMTModule({"a": MLP(5, 8), "b": MLP(6, 8)}, num_classes=3, head=kind).eval()
    inputs = {"a": torch.randn(20, 5), "b": torch.randn(20, 6)}
    constants = estimate_lipschitz(module, [inputs], of="margins")
    assert certify(module(inputs), None, constants).soundness is Soundness.ESTIMATED


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatedFusion(SIZES, 3, scores="zeroed"), "`scores` must be 'ablated' or 'auxiliary', got 'zeroed'"),
        (lambda: GatedFusion(SIZES, 1), "`num_classes` must be at least 2"),
        (lambda: FiLMFusion(SIZES, 3, base="d"), "`base` must be one of \\['a', 'b', 'c'\\], got 'd'"),
        (lambda: AttentionFusion(SIZES, 3, width=10), "`width` must be a multiple of `num_heads` = 4, got 10"),
        (lambda: AttentionFusion(SIZES, 3, shared_layers=0), "`shared_layers` must be at least 1, got 0"),
        (lambda: GatedFusion(SIZES, 3)({"a": torch.ones(1, 5)}), "missing \\['b', 'c'\\]"),
        (lambda: FiLMFusion(SIZES, 3)({**features(), "a": torch.ones(4, 9)}), "must have shape \\(B, 5\\)"),
        (lambda: GatedFusion(SIZES, 3)({**features(), "a": torch.ones(4, 2, 5)}), "must have shape \\(B, 5\\)"),
        (lambda: AttentionFusion(SIZES, 3)({**features(), "a": torch.ones(4, 2, 9)}), "or \\(B, T, 5\\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
