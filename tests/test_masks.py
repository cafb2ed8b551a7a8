# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Padding is not attacked: every attack of the package leaves it as it was, to the bit, and uses the rest in full."""

import inspect
from typing import get_origin

import pytest
import torch
from torch import nn

from lightning_crmt import attacks
from lightning_crmt.attacks import (
    FGM,
    PGD,
    Attack,
    Budget,
    BudgetedAttack,
    Ensemble,
    MinimumNorm,
    MissingModality,
    RandomNoise,
    RandomSearch,
    distance_by,
    strongest,
    surviving,
    suspicions,
)
from lightning_crmt.attacks.survival import fooled_by

B, T, D, K = 12, 6, 3, 3
LENGTHS = torch.arange(B) % T + 1
#: 1 for what is real.
REAL = (torch.arange(T) < LENGTHS[:, None]).long()

#: What each public attack is made with; a new one must be added here.
MAKE = {
    "APGD": lambda b: attacks.APGD(b, steps=5, restarts=2),
    "AutoAttack": lambda b: attacks.AutoAttack(b, attacks=["apgd-ce", "fab"], steps=5),
    "Ensemble": lambda b: Ensemble([FGM(b), RandomNoise(b, samples=2), PGD(b, steps=3, momentum=0.5)]),
    "FGM": FGM,
    "FoolboxDDN": lambda b: attacks.FoolboxDDN(b, steps=10),
    "LossAscent": lambda b: attacks.LossAscent(b, steps=3),
    "MinimumNorm": lambda b: MinimumNorm(b, steps=6),
    "MinimumNormEnsemble": lambda b: attacks.MinimumNormEnsemble([MinimumNorm(b, steps=4), MinimumNorm(b, steps=5)]),
    "PGD": lambda b: PGD(b, steps=5, restarts=2, momentum=0.5),
    "RandomNoise": lambda b: RandomNoise(b, samples=3),
    "RandomSearch": lambda b: RandomSearch(b, steps=9, restarts=2),
}
#: Functions and names that make attacks.
PRESETS = {"paper_fgm": attacks.paper_fgm, "paper_pgd": attacks.paper_pgd, "strongest": lambda b: strongest(b, steps=4)}
#: They need the extra ``attacks``.
OTHERS = {"AutoAttack": "pyautoattack", "FoolboxDDN": "foolbox"}
#: Balls that every one of them takes, and others.
BUDGETS = {
    "joint": lambda r, **s: Budget(r, **s),
    "audio": lambda r, **s: Budget(r, modalities=["audio"], **s),
    "box": lambda r, **s: Budget(r, box={"audio": (-2.0, 2.0)}, **s),
    "linf": lambda r, **s: Budget(r, norm="linf", **s),
    "linf, box": lambda r, **s: Budget(r, norm="linf", box={"audio": (-2.0, 2.0)}, **s),
    "product": lambda r, **s: Budget({"audio": r, "image": 2 * r}, **s),
}


class Model(nn.Module):
    """Listens to padding as loudly as to the rest, so that an attack would gain by changing it."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = lambda size: nn.Parameter(torch.randn(size, K, generator=generator, dtype=torch.float64).to(dtype))  # noqa: E731
        self.audio, self.image = weight(T * D), weight(4)

    def forward(self, inputs):
        return inputs["audio"].flatten(1) @ self.audio + inputs["image"].flatten(1) @ self.image


def batch(dtype=torch.float32, padding=5.0):
    generator = torch.Generator().manual_seed(1)
    audio = torch.rand(B, T, D, generator=generator, dtype=torch.float64) * 2 - 1
    audio = torch.where(REAL[:, :, None] == 1, audio, padding)
    audio[0, -1, 0] = -0.0  # adding 0 to it would change its sign
    image = torch.rand(B, 4, generator=generator, dtype=torch.float64)
    return {"audio": audio.to(dtype), "image": image.to(dtype), "audio.attention_mask": REAL}


def bits(value):
    return value.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()])


def assert_padding_is_untouched(found, x, free=None):
    free = (REAL == 1)[:, :, None].expand(B, T, D) if free is None else free
    assert bits(found["audio"])[~free].equal(bits(x["audio"])[~free])
    assert all(found[name] is x[name] for name in x if "." in name)
    assert list(found) == list(x)


def test_no_attack_is_forgotten():
    public = {name: getattr(attacks, name) for name in attacks.__all__}
    made = {
        name
        for name, each in public.items()
        if not get_origin(each)  # of which Python 3.10 says that they are classes
        and inspect.isclass(each)
        and issubclass(each, BudgetedAttack)
        and not inspect.isabstract(each)
    }
    assert made == set(MAKE)
    assert {n for n, each in public.items() if inspect.isfunction(each) and n in PRESETS} == set(PRESETS)


@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.parametrize("attack", {**MAKE, **PRESETS})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_comes_back_to_the_bit(attack, kind, dtype):
    if attack in OTHERS:
        pytest.importorskip(OTHERS[attack])
        if kind == "product" or (attack == "FoolboxDDN" and "linf" in kind):
            pytest.skip("takes one ball")
    model, x = Model(dtype), batch(dtype)
    y = model(x).argmax(dim=1)
    made = {**MAKE, **PRESETS}[attack]
    for radius in (0.1, 1.0, 30.0):
        budget = BUDGETS[kind](radius)
        search = made(budget)
        found = search(model, x, y)
        assert_padding_is_untouched(found, x)
        assert budget.size(budget.difference(found, x)).isfinite().all()
        if isinstance(search, attacks.MinimumNormAttack):
            distance_by(search, model, x, y)
        else:
            fooled_by(search, model, x, y)  # measures them again
    if attack not in ("RandomNoise", *OTHERS):
        assert not found["audio"].equal(x["audio"])


#: They draw no random numbers, of which there are more where there is padding.
DETERMINISTIC = {
    "FGM": FGM,
    "PGD": lambda b: PGD(b, steps=5, momentum=0.5),
    "APGD": lambda b: attacks.APGD(b, steps=6),
    "LossAscent": lambda b: attacks.LossAscent(b, steps=3),
    "MinimumNorm": lambda b: MinimumNorm(b, steps=10, restarts=1),
}


@pytest.mark.parametrize("attack", DETERMINISTIC)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_masked_attack_is_an_attack_on_a_model_without_padding(attack, norm):
    """It finds what it would find if padding were not there: the whole radius is spent on what is real."""

    class Short(nn.Module):
        def forward(self, inputs):
            rest = x["audio"][:1, 2:].expand(len(inputs["audio"]), -1, -1)
            whole = torch.cat([inputs["audio"], rest], dim=1)
            return model({"audio": whole, "image": inputs["image"]})

    model, x = Model(torch.float64), batch(torch.float64)
    x["audio"][:, 2:] = 0.5
    x["audio.attention_mask"] = (torch.arange(T) < 2).expand(B, T)
    y = model(x).argmax(dim=1)
    for radius in (0.1, 0.5):
        search = DETERMINISTIC[attack](Budget(radius, norm=norm))
        found = search(model, x, y)
        short = {"audio": x["audio"][:, :2], "image": x["image"]}
        expected = search(Short(), short, y)
        if attack == "MinimumNorm":  # distances are more exact than places
            sizes = [search.budget.size(search.budget.difference(*pair)) for pair in ((found, x), (expected, short))]
            assert torch.allclose(*sizes, rtol=1e-4)
            continue
        assert torch.allclose(found["audio"][:, :2], expected["audio"], atol=1e-9)
        assert torch.allclose(found["image"], expected["image"], atol=1e-9)


def test_projections_and_steepest_steps_are_those_of_the_smaller_space():
    x = batch(torch.float64)
    free = (REAL == 1)[:, :, None].expand(B, T, D)
    generator = torch.Generator().manual_seed(0)
    noise = lambda scale: {  # noqa: E731
        n: scale * torch.randn(x[n].shape, generator=generator, dtype=torch.float64) for n in ("audio", "image")
    }
    for kind, make in BUDGETS.items():
        budget = make(0.7)
        names = budget.attacked({**x, "audio": x["audio"].clamp(-2, 2)})
        inputs = {**x, "audio": x["audio"].clamp(-2, 2)}
        delta = {n: d for n, d in noise(2.0).items() if n in names}
        near, best = budget.project(delta, inputs), budget.steepest(delta, inputs)
        for each in (near, best):
            assert (each["audio"][~free] == 0).all()
            assert (budget.size(each) <= 1 + 1e-12).all()
        gain = sum((delta[n] * best[n]).flatten(1).sum(1) for n in names)
        for _ in range(20):
            other = budget.project({n: d for n, d in noise(3.0).items() if n in names}, inputs)
            beyond = sum(((delta[n] - near[n]) * (other[n] - near[n])).flatten(1).sum(1) for n in names)
            assert (beyond <= 1e-9).all(), kind
            assert (sum((delta[n] * other[n]).flatten(1).sum(1) for n in names) <= gain + 1e-9).all(), kind


def test_random_draws_use_the_radius_on_what_is_real():
    x = batch(torch.float64)
    for seed in range(5):
        drawn = Budget(0.7, modalities=["audio"]).random(x, torch.Generator().manual_seed(seed))["audio"]
        assert (drawn[(REAL == 0)] == 0).all()
        sizes = drawn.flatten(1).norm(dim=1)
        assert torch.allclose(sizes, sizes[:1].expand(B))  # the same share of it for all, however long they are
        assert (sizes > 0).all()


MASKS = {
    "bool": REAL.bool(),
    "float": REAL.float(),
    "every entry": REAL[:, :, None].expand(B, T, D),
    "one for all channels": REAL[:, :, None],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("how", ["given", "named", "context"])
def test_masks_come_in_several_shapes_and_from_several_places(mask, how):
    model, x = Model(), batch()
    del x["audio.attention_mask"]
    budget = Budget(5.0)
    if how == "given":
        budget = Budget(5.0, mask={"audio": MASKS[mask]})
    elif how == "named":
        x[".real"], budget = MASKS[mask], Budget(5.0, mask={"audio": ".real"})
    else:
        x["audio.attention_mask"] = MASKS[mask]
    y = model(x).argmax(dim=1)
    for search in (PGD(budget), MinimumNorm(budget, steps=5), strongest(budget, steps=3)):
        found = search(model, x, y)
        assert_padding_is_untouched(found, x)
        assert (found["audio"] != x["audio"]).any()


def test_all_but_the_channels():
    image, mask = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5) > 0.5
    inputs = {"image": image, ".pixel_mask": mask}
    model = lambda x: x["image"].sum(dim=(2, 3))  # noqa: E731
    moved = FGM(Budget(0.1, norm="linf", mask={"image": ".pixel_mask"}))(model, inputs, model(inputs).argmax(dim=1))
    changed = (moved["image"] != image).any(dim=1)
    assert changed.equal(mask)


def test_without_a_mask_padding_is_attacked_too():
    model, x = Model(), batch()
    y = model(x).argmax(dim=1)
    found = PGD(Budget(1.0, mask={"audio": None}))(model, x, y)
    assert (found["audio"] != x["audio"])[REAL == 0].any()


def test_a_mask_of_the_whole_batch_is_that_of_what_it_fits():
    x = batch()
    x[".attention_mask"] = x.pop("audio.attention_mask")
    assert Budget(1.0).free("audio", x)[:, :, 0].equal(REAL.bool())
    assert Budget(1.0).free("image", x) is None
    tokens = {**x, "text": torch.zeros(B, T, dtype=torch.long)}
    assert Budget(1.0).free("audio", tokens) is None  # it is of the token ids
    assert Budget(1.0).free("audio", {**x, ".input_ids": torch.zeros(B, T, dtype=torch.long)}) is None
    both = {**x, "video": torch.zeros(B, T)}
    with pytest.raises(ValueError, match=r"'\.attention_mask' may be the mask of any of \['audio', 'video'\]: say"):
        Budget(1.0).attacked(both)
    assert Budget(1.0, mask={"audio": ".attention_mask", "video": None}).attacked(both) == ["audio", "image", "video"]


def test_a_modality_that_a_sample_lacks_is_not_attacked():
    model, x = Model(), batch()
    x["image.present"] = torch.arange(B) % 2 == 0
    y = model(x).argmax(dim=1)
    for made in MAKE.values():
        try:
            search = made(Budget(2.0))
        except ModuleNotFoundError:
            continue
        found = search(model, x, y)
        absent = ~x["image.present"]
        assert bits(found["image"])[absent].equal(bits(x["image"])[absent])
        assert_padding_is_untouched(found, x)


def test_masks_go_with_the_samples():
    budget = Budget(1.0, mask={"audio": REAL, "image": ".mask"})
    part = budget.select(torch.tensor([2, 5])).scaled(2.0)
    assert part.mask["audio"].equal(REAL[[2, 5]])
    assert part.mask["image"] == ".mask"
    assert budget == Budget(1.0, mask={"audio": REAL.clone(), "image": ".mask"})
    assert hash(budget) == hash(Budget(1.0, mask={"audio": REAL.bool(), "image": ".mask"}))
    assert budget != Budget(1.0, mask={"audio": 1 - REAL, "image": ".mask"})
    assert budget != Budget(1.0)
    assert Budget(1.0, mask={"audio": None}) != Budget(1.0)


def test_a_sample_without_anything_real_is_left_alone():
    model, x = Model(), {**batch(), "audio.attention_mask": torch.zeros(B, T)}
    y = model(x).argmax(dim=1)
    budget = Budget(50.0, modalities=["audio"])
    for name, made in MAKE.items():
        if name in OTHERS:
            continue
        assert made(budget)(model, x, y)["audio"].equal(x["audio"]), name
    assert distance_by(MinimumNorm(budget, steps=5), model, x, y).isinf().all()
    assert surviving(strongest(budget, steps=3), model, x, y, [1.0], y >= 0)[0].all()


class Cheats(BudgetedAttack):
    """Moves padding, within the radius."""

    def __init__(self, budget):
        self.budget = budget

    def __call__(self, model, inputs, target):
        return {**inputs, "audio": inputs["audio"] + 0.01 * (REAL == 0)[: len(target), :, None]}


def test_an_attack_that_touches_padding_is_found_out():
    model, x = Model(), batch()
    y = model(x).argmax(dim=1)
    with pytest.raises(RuntimeError, match="the attack Cheats changed entries of 'audio' that its mask"):
        fooled_by(Cheats(Budget(100.0)), model, x, y)
    fooled_by(Cheats(Budget(100.0, mask={"audio": None})), model, x, y)
    x["image.present"] = torch.zeros(B, dtype=torch.bool)
    moved = {**x, "image": x["image"] + 1e-3}
    assert Budget(100.0).size(Budget(100.0).difference(moved, x)).isinf().all()


def test_an_ensemble_takes_changes_of_padding_back():
    model, x = Model(), batch()
    y = model(x).argmax(dim=1)
    assert_padding_is_untouched(Ensemble([Cheats(Budget(100.0))])(model, x, y), x)


def test_padding_need_not_lie_in_the_box():
    x = batch(padding=77.0)
    budget = Budget(0.5, box={"audio": (-1.0, 1.0)})
    assert budget.attacked(x) == ["audio", "image"]
    with pytest.raises(ValueError, match="must lie in its box"):
        Budget(0.5, box={"audio": (-1.0, 1.0)}, mask={"audio": None}).attacked(x)
    y = Model()(x).argmax(dim=1)
    fooled_by(PGD(budget), Model(), x, y)
    assert_padding_is_untouched(PGD(budget)(Model(), x, y), x)


@pytest.mark.filterwarnings("error")
def test_an_attack_that_is_masked_is_not_suspected():
    generator = torch.Generator().manual_seed(0)
    model, x = Model(torch.float64), batch(torch.float64)
    x["audio"] = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    assert suspicions(strongest(Budget(0.3)), model, x, model(x).argmax(dim=1)) == []


def test_missing_modalities_keep_the_context():
    model, x = Model(), batch()
    y = model(x).argmax(dim=1)
    search = MissingModality()
    assert search.subsets(x) == [(), ("audio",), ("image",)]
    found = search(model, x, y)
    assert found["audio.attention_mask"] is x["audio.attention_mask"]
    assert isinstance(search, Attack)


@pytest.mark.parametrize(
    ("mask", "context", "message"),
    [
        ({"audio": ".lengths"}, {}, r"`mask\['audio'\]` must be a tensor or the name of context .* got '\.lengths'"),
        ({"smell": None}, {}, r"must name modalities among \['audio', 'image'\], got \['smell'\]"),
        (
            {"audio": torch.ones(B, T + 1)},
            {},
            r"the mask of 'audio' must have the first dimensions of ",
        ),
        ({"audio": torch.ones(1, T)}, {}, "the mask of 'audio' must have the first dimensions"),
        ({"audio": torch.zeros(B, T) - 1e4}, {}, "must be bool, or 1 for what may be perturbed .* got "),
        ({}, {"audio.attention_mask": torch.ones(B, 2)}, r"mask=\{'audio': None\} perturbs padding too"),
    ],
)
def test_masks_that_are_none(mask, context, message):
    with pytest.raises(ValueError, match=message):
        Budget(1.0, mask=mask).attacked({**batch(), **context})


def test_masks_of_another_type():
    with pytest.raises(TypeError, match="`mask` must be by modality"):
        Budget(1.0, mask=torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"`mask\['audio'\]` must be a tensor, the name of .*, got a list"):
        Budget(1.0, mask={"audio": [1, 0]})


def test_means_are_over_samples_that_have_the_modality():
    x = {"audio": torch.tensor([[2.0], [100.0], [4.0]]), "audio.present": torch.tensor([True, False, True])}
    x |= {"audio.mask": torch.ones(3, 1), "text": torch.ones(3, 2, dtype=torch.long)}
    assert attacks.mean_inputs([x, x]) == {"audio": torch.tensor([3.0], dtype=torch.float64)}
    assert attacks.mean_inputs([{"text": x["text"]}]) == {}
    with pytest.raises(ValueError, match=r"at least one sample of each modality, got {'audio': 0}"):
        attacks.mean_inputs([{**x, "audio.present": torch.zeros(3, dtype=torch.bool)}])


def test_padding_ids():
    tokens = {"text": torch.tensor([[5, 3]]), "image": torch.ones(1, 2)}
    assert MissingModality().filled(tokens, ["text"])["text"].tolist() == [[0, 0]]
    assert MissingModality({"text": 1}).filled(tokens, ["text"])["text"].tolist() == [[1, 1]]
    assert MissingModality({"text": [101, 102]}).filled(tokens, ["text"])["text"].tolist() == [[101, 102]]
    with pytest.raises(ValueError, match=r"`fill\['text'\]` must hold integers, such as the padding id, .* got 0.5"):
        MissingModality({"text": 0.5}).filled(tokens, ["text"])
