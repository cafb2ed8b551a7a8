# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Ablation of tokens, alone and beside Gaussian noise, against brute force over tiny vocabularies."""

import itertools
import math
import random

import pytest
import torch
from scipy import stats

from lightning_crmt import Ablation, CRMTModule, SmoothedCertificate, SmoothedClassifier
from lightning_crmt.methods import TokenAblation
from lightning_crmt.smoothing import needed_probability

MASK = 9


def choose(n, k):
    return math.comb(n, k) if 0 <= k <= n else 0


def needed(shift, untouched):
    return float(needed_probability(torch.tensor([shift]).double(), torch.tensor([untouched]).double()))


def masked_texts(text, kept):
    """All equally likely results of the ablation."""
    for places in itertools.combinations(range(len(text)), kept):
        yield tuple(token if place in places else MASK for place, token in enumerate(text))


def changed(text, r, vocabulary):
    """All texts that differ in exactly r places."""
    for places in itertools.combinations(range(len(text)), r):
        for tokens in itertools.product(*([t for t in vocabulary if t != text[place]] for place in places)):
            other = list(text)
            for place, token in zip(places, tokens, strict=True):
                other[place] = token
            yield tuple(other)


@pytest.mark.parametrize("length", range(1, 9))
def test_chances_are_those_of_counting(length):
    for keep in (0.05, 0.3, 0.5, 0.75, 1.0):
        ablation = Ablation(keep, MASK)
        kept = int(ablation.kept(torch.tensor([length])))
        assert kept == max(1, math.ceil(keep * length - 1e-9))
        for r in range(length + 2):
            q = float(ablation.untouched(torch.tensor([length]), r))
            exact = choose(length - min(r, length), kept) / choose(length, kept)
            assert q == pytest.approx(exact, abs=2e-9)
            assert q <= exact


def test_of_no_token_nothing_can_be_changed():
    assert Ablation(0.5, MASK).untouched(torch.tensor([0]), 3).tolist() == [1.0]


def test_every_choice_of_tokens_is_equally_likely():
    tokens, counted = torch.tensor([[1, 2, 3, 4, 0, 0]]), torch.tensor([[True] * 4 + [False] * 2])
    generator = torch.Generator().manual_seed(0)
    many = Ablation(0.5, MASK).apply(tokens.expand(6000, 6), counted, generator)
    assert (many[:, 4:] == 0).all()
    seen = {}
    for row in many[:, :4].tolist():
        seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    assert set(seen) == set(masked_texts((1, 2, 3, 4), 2))
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


@pytest.mark.parametrize("seed", range(20))
def test_no_text_and_no_shift_within_what_is_certified_changes_the_answer(seed):
    """A base model that is any table over masked texts, each with a threshold on a number with Gaussian noise."""
    rng = random.Random(seed)
    length, kept, vocabulary, sigma = rng.choice([3, 4]), rng.choice([1, 2]), (0, 1, 2), 0.7
    ablation = Ablation(kept / length, MASK)
    text = tuple(rng.choice(vocabulary) for _ in range(length))
    thresholds, lean = {}, rng.choice([-3.0, -1.5, -0.5])

    def probability(of, shift):
        """That the first class is answered where x is ``shift``: it is where x + noise is above a threshold."""
        each = []
        for masked in masked_texts(of, kept):
            threshold, sign = thresholds.setdefault(masked, (rng.gauss(lean, 1), rng.choice([1, 1, 1, -1])))
            each.append(stats.norm.cdf(sign * (shift - sign * threshold) / sigma))
        return sum(each) / len(each)

    clean = probability(text, 0.0)
    tried = 0
    for r in range(length + 1):
        untouched = float(ablation.untouched(torch.tensor([length]), r))
        for shift in (0.0, 0.2, 0.5, 1.0):
            if needed(shift / sigma, untouched) >= clean:
                continue
            for other in changed(text, r, vocabulary):
                for moved in (-shift, shift):
                    tried += 1
                    assert probability(other, moved) > 0.5
    assert tried or clean < 0.6


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("r", [1, 2])
def test_what_is_needed_cannot_be_less(shift, r):
    """The worst base model: right on all masked texts that show the change, and on a half-space of the others."""
    length, kept = 6, 1
    untouched = choose(length - r, kept) / choose(length, kept)
    limit = needed(shift, untouched)
    for clean, holds in ((limit - 1e-6, False), (limit + 1e-6, True)):
        share = (clean - (1 - untouched)) / untouched
        attacked = untouched * stats.norm.cdf(stats.norm.ppf(share) - shift)
        assert bool(attacked > 0.5) is holds


def test_what_is_needed_grows_with_the_change():
    shifts = torch.linspace(0, 3, 20).double()
    for untouched in (1.0, 0.9, 0.6):
        each = needed_probability(shifts, torch.full_like(shifts, untouched))
        assert (each.diff() > 0).all()
    assert needed(0.0, 0.5) == needed(0.0, 0.0) == 1.0
    assert needed(1.3, 1.0) == pytest.approx(stats.norm.cdf(1.3))
    assert needed(0.0, 0.8) == pytest.approx(1.5 - 0.8)


def model_of(table_size=5, seed=0):
    """Logits from an embedding of the tokens and a number: a sum, so that replacing a token changes it by a bit."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(MASK + 1, generator=generator).double()
    table[MASK] = 0

    def model(inputs):
        total = table[inputs["text"]].sum(dim=1) + 0.5
        if "image" in inputs:
            total = total + inputs["image"][:, 0]
        return torch.stack([total, -total], dim=1)

    return model


def test_certificates_of_text_alone_hold_for_every_other_text():
    model = model_of()
    smoothed = SmoothedClassifier(model, {"text": Ablation(0.2, MASK)}, alpha=0.001, max_draws=4000)
    texts = torch.randint(0, 4, (12, 5), generator=torch.Generator().manual_seed(1))
    certificate = smoothed.certify({"text": texts}, budgets=[{"text": 1}, {"text": 2}])
    most = certificate.replacements("text")
    assert most.max() >= 1
    for index, text in enumerate(texts.tolist()):
        answers = torch.tensor([model({"text": torch.tensor([m])})[0].argmax() for m in masked_texts(text, 1)])
        exact = max((answers == k).double().mean().item() for k in (0, 1))
        assert certificate.lower[index] <= exact
        for r in range(int(most[index]) + 1):
            assert certificate.tolerates({"text": r})[index]
            for other in changed(tuple(text), r, (0, 1, 2, 3)):
                rows = torch.tensor(list(masked_texts(other, 1)))
                share = (model({"text": rows}).argmax(dim=1) == certificate.prediction[index]).double().mean()
                assert share > 0.5


def test_text_and_image_have_one_certificate():
    inputs = {
        "text": torch.randint(0, 4, (8, 10), generator=torch.Generator().manual_seed(2)),
        "image": torch.full((8, 1), 2.0),
        "text.attention_mask": torch.tensor([[1] * 10] * 4 + [[1] * 5 + [0] * 5] * 4),
    }
    smoothed = SmoothedClassifier(model_of(), {"text": Ablation(0.1, MASK), "image": 0.5}, max_draws=4000)
    certificate = smoothed.certify(inputs, radii=[0.1], budgets=[{"text": 1, "image": 0.2}])
    assert certificate.lengths["text"].tolist() == [10] * 4 + [5] * 4
    given = ~certificate.abstained
    assert given.any()
    for r, radius in itertools.product((0, 1, 2), (0.0, 0.2, 0.6)):
        for index in given.nonzero().flatten().tolist():
            q = float(Ablation(0.1, MASK).untouched(certificate.lengths["text"][index : index + 1], r))
            p = float(certificate.lower[index])
            holds = q > 0.5 and p > 1 - q
            if holds:
                share = (p - (1 - q)) / q
                holds = q * stats.norm.cdf(stats.norm.ppf(share) - radius / 0.5) > 0.5
            assert bool(certificate.tolerates({"text": r, "image": radius})[index]) is bool(holds)
    assert torch.equal(certificate.tolerates({"image": 0.1}), certificate.radius(["image"]) > 0.1)
    assert torch.equal(certificate.radius(), certificate.radius(["image"]))
    with pytest.raises(ValueError, match="with noise, among \\['image'\\]"):
        certificate.radius(["text"])


def test_two_texts_share_the_chance():
    ablation = Ablation(0.1, MASK)
    certificate = SmoothedCertificate(
        torch.tensor([0]), torch.tensor([0.85]).double(), {}, 0.001, torch.tensor([64]), 2,
        {"title": ablation, "body": ablation}, {"title": torch.tensor([10]), "body": torch.tensor([20])},
    )  # fmt: skip
    for title, body in itertools.product(range(4), range(6)):
        q = choose(10 - title, 1) / 10 * choose(20 - body, 2) / choose(20, 2)
        assert bool(certificate.tolerates({"title": title, "body": body})) is (1.5 - q < 0.85)
    assert certificate.replacements("title").tolist() == [3]


def test_padding_and_absent_texts_are_left_alone():
    seen = []

    def model(inputs):
        seen.append(inputs["text"])
        first = torch.where(inputs["text.present"], inputs["text"][:, 0], 0)
        return torch.nn.functional.one_hot(first % 2, 2).double()

    inputs = {"text": torch.tensor([[2, 3, 0], [5, 5, 5]]), "text.present": torch.tensor([True, False]),
              "text.attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}  # fmt: skip
    certificate = SmoothedClassifier(model, {"text": Ablation(0.5, MASK)}, max_draws=64).certify(inputs)
    first, second = seen[-1].reshape(2, 64, 3)
    assert (first[:, 2] == 0).all()
    assert ((first[:, :2] == MASK).sum(dim=1) == 1).all()
    assert (second == 5).all()
    assert certificate.lengths["text"].tolist() == [2, 0]


def test_bad_ablations_are_named():
    for keep in (0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="`keep` must be a share above 0 and at most 1"):
            Ablation(keep, 0)
    with pytest.raises(ValueError, match="`mask_token` must be a token, an integer of at least 0, got -1"):
        Ablation(0.5, -1)
    smoothed = SmoothedClassifier(lambda inputs: inputs["audio"], {"audio": Ablation(0.5, 0)})
    with pytest.raises(TypeError, match="the Ablation of 'audio' is of tokens, which are integers, got a float32"):
        smoothed.certify({"audio": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="must be of one of the modalities \\['image'\\], got 'audio'"):
        smoothed.certify({"image": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="an Ablation is of inputs"):
        SmoothedClassifier(lambda inputs: inputs["audio"], {"audio": Ablation(0.5, 0)}, at="features")


def test_training_masks_tokens_that_count():
    inputs = {"text": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), "title": torch.tensor([[7, 8]] * 2),
              "image": torch.ones(2, 3), "text.attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}  # fmt: skip
    target = torch.tensor([0, 1])
    changed, same = TokenAblation(0.5, MASK).transform(None, inputs, target)
    assert same is target
    assert (changed["text"] == MASK).sum(dim=1).tolist() == [2, 1]
    assert (changed["text"][1, 2:] == 0).all()
    assert (changed["title"] == MASK).sum(dim=1).tolist() == [1, 1]
    assert changed["image"] is inputs["image"]
    only, _ = TokenAblation(0.5, MASK, modalities=["text"]).transform(None, inputs, target)
    assert only["title"] is inputs["title"]
    with pytest.raises(TypeError, match="the Ablation of 'image' is of tokens"):
        TokenAblation(0.5, MASK, modalities=["image"]).transform(None, inputs, target)
    with pytest.raises(ValueError, match="`modalities` must be a list of at least one name, got 'text'"):
        TokenAblation(0.5, MASK, modalities="text")
    module = CRMTModule({"image": torch.nn.Linear(3, 4)}, 2, in_features={"image": 4})
    with pytest.raises(ValueError, match="`modalities` must be among \\['image'\\], got \\['text'\\]"):
        TokenAblation(0.5, MASK, modalities=["text"]).begin(module)


@pytest.mark.slow
def test_a_model_trained_on_masked_texts_tolerates_replaced_tokens(make_trainer):
    """Texts whose tokens mostly say the class: half of them may be wrong and the rest still tells."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (400,), generator=generator)
    telling = 1 + target[:, None] * 4 + torch.randint(0, 4, (400, 12), generator=generator)
    texts = torch.where(torch.rand(400, 12, generator=generator) < 0.1, 9 - telling, telling)
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Embedding(10, 8, padding_idx=0), torch.nn.Flatten(), torch.nn.Linear(96, 8))
    module = CRMTModule({"text": encoder}, 2, in_features={"text": 8})
    data = torch.utils.data.TensorDataset(texts[:300], target[:300])
    loader = torch.utils.data.DataLoader([({"text": x}, y) for x, y in data], batch_size=50)
    make_trainer(TokenAblation(0.25, mask_token=0), max_epochs=15).fit(module, loader, loader)
    smoothed = SmoothedClassifier(module, {"text": Ablation(0.25, 0)})
    certificate = smoothed.certify({"text": texts[300:]}, budgets=[{"text": 1}])
    right = certificate.prediction == target[300:]
    assert right.double().mean() > 0.9
    assert (right & certificate.tolerates({"text": 1})).double().mean() > 0.7


def test_masks_that_are_added_to_logits_are_refused():
    """0 for a token and -1e9 for padding: read as they stand, padding would be masked in place of tokens."""
    inputs = {"text": torch.tensor([[1, 2, 3]]), "text.attention_mask": torch.tensor([[0.0, 0.0, -1e9]])}
    smoothed = SmoothedClassifier(lambda inputs: torch.zeros(len(inputs["text"]), 2), {"text": Ablation(0.5, 0)})
    with pytest.raises(ValueError, match="the mask of 'text' must be bool, or 1 for what may be perturbed"):
        smoothed.certify(inputs)


def test_the_mask_of_the_whole_batch_is_that_of_the_one_text():
    inputs = {"text": torch.tensor([[1, 2, 3, 4]] * 2), ".attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]])}
    smoothed = SmoothedClassifier(model_of(), {"text": Ablation(0.5, MASK)}, max_draws=64)
    assert smoothed.certify(inputs).lengths["text"].tolist() == [4, 2]
    image = {**inputs, "image": torch.zeros(2, 1)}
    trusted = SmoothedClassifier(model_of(), {"image": 0, "text": Ablation(0.5, MASK)}, max_draws=64).certify(image)
    assert not trusted.sigma


def test_a_mask_token_must_fit_the_tokens():
    smoothed = SmoothedClassifier(lambda inputs: torch.zeros(len(inputs["text"]), 2), {"text": Ablation(0.5, 300)})
    with pytest.raises(ValueError, match=r"`mask_token` must be a number of torch\.uint8, as the tokens are, got 300"):
        smoothed.certify({"text": torch.ones(1, 4, dtype=torch.uint8)})
