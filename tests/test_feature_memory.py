# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse codes, the head that uses them, and the callback that fills its dictionaries."""

import math
from itertools import pairwise

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_crmt import CRMTModule, LinearFusion, LipschitzConstants, OrthogonalFusion, Soundness, certify
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import MemoryFusion
from lightning_crmt.fusion.memory import reconstruction, sparse_codes
from lightning_crmt.methods import AdversarialTraining, FeatureMemory, MinimalSimilarity, Mixup


def model(names=("fou", "mor"), lr=0.001, **settings):
    torch.manual_seed(0)
    sizes = {"fou": 76, "mor": 6, "zer": 47}

    def head(in_features, num_classes):
        return MemoryFusion(in_features, num_classes, **({"atoms": 24, "steps": 200} | settings))

    encoders = {name: MLP(sizes[name], 8) for name in names}
    return CRMTModule(
        encoders, num_classes=10, rho=0.0, head=head, optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr)
    )


def slow_codes(z, atoms, penalty):
    """Coordinate descent on plain numbers, to the end."""
    z, atoms = z.tolist(), atoms.tolist()
    gram = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in atoms] for a in atoms]
    cross = [sum(x * y for x, y in zip(z, a, strict=True)) for a in atoms]
    codes = [0.0] * len(atoms)
    for _ in range(1000):
        for k in range(len(atoms)):
            along = cross[k] - sum(gram[k][j] * codes[j] for j in range(len(atoms)) if j != k)
            codes[k] = math.copysign(max(abs(along) - penalty, 0.0), along) / gram[k][k]
    return torch.tensor(codes)


def objective(z, atoms, codes, penalty):
    return 0.5 * (z - codes @ atoms).square().sum(dim=1) + penalty * codes.abs().sum(dim=1)


def test_codes_are_those_of_another_solver():
    torch.manual_seed(0)
    atoms, z = torch.randn(5, 6), torch.randn(3, 6)
    found = sparse_codes(z, atoms, penalty=0.7, steps=5000, tolerance=0.0)
    expected = torch.stack([slow_codes(row, atoms, 0.7) for row in z])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found == 0).any()


def test_no_step_goes_up_and_the_tolerance_stops():
    torch.manual_seed(0)
    atoms, z = torch.randn(30, 6).double(), torch.randn(4, 6).double()
    values = [objective(z, atoms, sparse_codes(z, atoms, 0.3, steps, 0.0), 0.3) for steps in (1, 2, 5, 20, 100, 1000)]
    assert all((after <= before + 1e-12).all() for before, after in pairwise(values))
    rough, fine = (objective(z, atoms, sparse_codes(z, atoms, 0.3, 5000, tol), 0.3).sum() for tol in (1e-2, 0.0))
    assert fine < rough < 1.2 * fine


def test_repeated_atoms_and_rows_of_zeros():
    torch.manual_seed(0)
    atoms = torch.cat([torch.eye(4)[:3], torch.eye(4)[:3], torch.zeros(5, 4)])
    z = torch.tensor([[3.0, -2.0, 0.1, 5.0]], requires_grad=True)
    found = reconstruction(z, atoms, 0.5, tolerance=0.0)
    torch.testing.assert_close(found, torch.tensor([[2.5, -1.5, 0.0, 0.0]]))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), z)[0], torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert not sparse_codes(z, torch.zeros(3, 4), 0.5).any()


def test_the_gradient_is_that_of_the_exact_solution():
    torch.manual_seed(0)
    atoms, z = torch.randn(5, 6).double(), torch.randn(3, 6).double()
    leaf, direction = z.clone().requires_grad_(), torch.randn(3, 6).double()
    (gradient,) = torch.autograd.grad((reconstruction(leaf, atoms, 0.7, 20000, 0.0) * direction).sum(), leaf)
    for i, j in ((0, 0), (1, 3), (2, 5)):
        moved = [z.clone(), z.clone()]
        moved[0][i, j] += 1e-5
        moved[1][i, j] -= 1e-5
        values = [(reconstruction(each, atoms, 0.7, 20000, 0.0) * direction).sum() for each in moved]
        assert gradient[i, j].item() == pytest.approx(((values[0] - values[1]) / 2e-5).item(), abs=1e-4)


@pytest.mark.parametrize("inner", [LinearFusion, OrthogonalFusion])
def test_the_head_by_hand(inner):
    torch.manual_seed(0)
    sizes = {"a": 4, "b": 5, "c": 6}
    head = MemoryFusion(sizes, num_classes=3, head=inner, atoms=7, blend=0.6, penalty=0.2, steps=3000, tolerance=0.0)
    features = {name: torch.randn(4, size) for name, size in sizes.items()}
    plain = head(features)
    assert plain.logits.equal(head.head(features).logits)  # nothing to recall yet
    head.fill({name: torch.randn(7, size) for name, size in sizes.items()})
    recalled = {}
    for name, z in features.items():
        atoms = head.dictionaries[name]
        codes = torch.stack([slow_codes(row, atoms, 0.2) for row in z])
        recalled[name] = 0.6 * codes @ atoms + 0.4 * z
    output = head(features)
    expected = head.head(recalled)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(output.logits, plain.logits, atol=1e-3)
    assert all(output.features[name] is z for name, z in features.items())
    unimodal = torch.stack(list(head.unimodal_logits(output.scores).values())).sum(0)
    torch.testing.assert_close(unimodal, output.logits)
    assert head.integration_parameters() == head.head.integration_parameters()


def test_a_perturbation_off_the_dictionary_is_damped():
    """What the memory is for: the part of a feature that no training feature has is left out."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16))[0]
    seen, unseen = basis[:4], basis[4]
    head = MemoryFusion({"a": 16}, num_classes=3, atoms=50, blend=1.0, penalty=0.01)
    head.fill({"a": torch.randn(50, 4) @ seen})
    z = torch.randn(5, 4) @ seen
    clean, off = head({"a": z}).logits, head({"a": z + 3 * unseen}).logits
    torch.testing.assert_close(off, clean, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(head.head({"a": z + 3 * unseen}).logits, head.head({"a": z}).logits, atol=0.1)


def samples_of(dictionary, module, data, name):
    """Index of the training sample that each atom is the feature of."""
    with torch.no_grad():
        features = module.encoders[name](data.parts["train"].inputs[name])
    distance, index = torch.cdist(dictionary, features).min(dim=1)
    assert distance.max() < 1e-2
    return index


@pytest.mark.parametrize("settings", [{}, {"limit_val_batches": 0}, {"precision": "bf16-mixed"}])
def test_dictionaries_are_features_of_the_encoders_as_they_are(settings, make_trainer):
    data = UCIMultiFeatures(views=("fou", "mor", "zer"), batch_size=190)  # the last batch is smaller
    module, filled = model(("fou", "mor", "zer")), []

    class Watching(Mixup):  # the samples are clean ones
        def on_train_epoch_start(self, trainer, pl_module):
            filled.append(bool(pl_module.head.filled))

    make_trainer(FeatureMemory(start_epoch=2), Watching(), max_epochs=3, **settings).fit(module, data)
    assert filled == [False, False, True]
    indices = [samples_of(rows, module, data, name) for name, rows in module.head.dictionaries.items()]
    assert indices[0].equal(indices[1])  # the same samples in all modalities
    assert indices[0].equal(indices[2])
    assert len(indices[0].unique()) == 24


def test_fewer_samples_than_atoms(make_trainer):
    data = UCIMultiFeatures(batch_size=10)
    module = model(atoms=24)
    make_trainer(FeatureMemory(start_epoch=0), max_epochs=1, limit_train_batches=2).fit(module, data)
    rows = module.head.dictionaries["mor"]
    assert rows[:20].any(dim=1).all()
    assert not rows[20:].any()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_checkpoint_holds_the_memory_and_a_resumed_run_equals_the_whole(make_trainer, data, tmp_path):
    def fit(module, **settings):
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(FeatureMemory(), saving, max_epochs=3, enable_checkpointing=True)
        trainer.fit(module, data, **settings)
        return module.state_dict()

    whole = fit(model())
    resumed = fit(model(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []
    plain = model()
    plain.load_state_dict(torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"])
    assert bool(plain.head.filled)
    samples_of(plain.head.dictionaries["mor"], plain, data, "mor")  # of the encoders in the same file
    (found,) = make_trainer().test(plain, data, verbose=False)
    assert found["test/loss"] > 0


def test_attacks_see_through_the_memory(make_trainer, data):
    """All goes through the codes here: without the gradient of theirs an attack would stand still."""
    module = model(lr=0.01, penalty=0.01, blend=1.0)
    make_trainer(FeatureMemory(start_epoch=0), max_epochs=3).fit(module, data)
    module.eval()
    part = data.parts["val"]
    inputs, y = {name: x[:100] for name, x in part.inputs.items()}, part.target[:100]
    cross = nn.functional.cross_entropy
    found = PGD(Budget(0.3), steps=5, loss="ce", seed=0)(module, inputs, y)
    with torch.no_grad():
        clean, attacked = (cross(module(x).logits, y).item() for x in (inputs, found))
    assert attacked > clean + 0.2


def test_composes_with_the_rest_of_the_defence(make_trainer, data):
    module = model()
    attack = AdversarialTraining(PGD(Budget(0.1), steps=1, loss="ce"))
    callbacks = [attack, Mixup(), MinimalSimilarity(), FeatureMemory(start_epoch=0)]
    make_trainer(*callbacks, max_epochs=1, precision="bf16-mixed", accumulate_grad_batches=2).fit(module, data)
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_nothing_is_certified(data):
    module = model()
    data.setup()
    inputs = {name: x[:2] for name, x in data.parts["val"].inputs.items()}
    module.head.fill({name: torch.randn(24, 8) for name in inputs})
    ones = LipschitzConstants({"fou": torch.tensor(1.0), "mor": torch.tensor(1.0)}, "encoder", Soundness.SOUND)
    for constants in (None, ones):
        with pytest.raises(TypeError, match="`head`, a LateFusion"):
            module.certify(inputs, constants)
    with pytest.raises(ValueError, match="`head` must be late fusion"):
        certify(module.eval()(inputs), module.head, ones)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryFusion({"a": 2}, 3, atoms=0), "`atoms` must be at least 1, got 0"),
        (lambda: MemoryFusion({"a": 2}, 3, steps=0), "`steps` must be at least 1, got 0"),
        (lambda: MemoryFusion({"a": 2}, 3, blend=1.5), r"`blend` must be in \[0, 1\], got 1.5"),
        (lambda: MemoryFusion({"a": 2}, 3, penalty=-1.0), "`penalty` must be at least 0, got -1.0"),
        (lambda: MemoryFusion({"a": 2}, 3, tolerance=-1.0), "`tolerance` must be at least 0, got -1.0"),
        (
            lambda: MemoryFusion({"a": 2}, 3).fill({"a": torch.ones(2, 3)}),
            r"must have shape \(A, 2\) with A at most 128",
        ),
        (lambda: MemoryFusion({"a": 2}, 3, atoms=1).fill({"a": torch.ones(2, 2)}), "with A at most 1, got"),
        (lambda: MemoryFusion({"a": 2}, 3).fill({"b": torch.ones(2, 2)}), "must hold exactly the modalities"),
        (lambda: FeatureMemory(start_epoch=-1), "`start_epoch` must be at least 0, got -1"),
        (lambda: FeatureMemory(seed=-1), "`seed` must be at least 0, got -1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_fit_refuses(make_model, make_trainer, data):
    with pytest.raises(TypeError, match="FeatureMemory fills the head MemoryFusion, got a LinearFusion"):
        make_trainer(FeatureMemory()).fit(make_model(head=LinearFusion), data)
    head = MemoryFusion({"a": 2}, 3)
    head.fill({"a": torch.ones(1, 2)})
    with pytest.raises(ValueError, match=r"`features\['a'\]` must have shape \(B, 2\)"):
        head({"a": torch.ones(1, 4)})
