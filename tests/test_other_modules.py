# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Modules and batches in the forms that other people have them, under every observer."""

from collections import UserDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, FusionOutput
from lightning_crmt.attacks import PGD, Budget, MinimumNorm, MissingModality
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness, MissingModalities
from lightning_crmt.criterion import Criterion
from lightning_crmt.encoders import MLP
from lightning_crmt.modality import logits_of
from lightning_crmt.training import NamedModel

B, T = 10, 6
NAMES = ("pixel_values", "input_values")
MASK = (torch.arange(T) < (torch.arange(B) % T + 1)[:, None]).long()


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


Tuple = namedtuple("Tuple", ["hidden", "logits"])


class Slots:
    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(B, 3, 2, 2, generator=generator),
        "input_values": torch.randn(B, T, generator=generator),
        "attention_mask": MASK,
        "labels": torch.arange(B) % 3,
    }


class Net(nn.Module):
    """What all of them compute; it fails without the mask, and if labels come that were not asked for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.audio = nn.Linear(12, 3), nn.Linear(T, 3)

    def forward(self, pixel_values, input_values, attention_mask, labels=None):
        assert labels is None
        return self.image(pixel_values.flatten(1)) + self.audio(input_values * attention_mask)


class Theirs(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = Net()

    def validation_step(self, batch, index): ...


class TakesEverything(Theirs):
    def forward(self, **batch):
        return Output(self.model(**batch))


class Wraps(Theirs):
    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class WrapsTwice(Theirs):
    class Parallel(nn.Module):  # as nn.DataParallel does
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs, **kwargs):
            return self.module(*inputs, **kwargs)

    def __init__(self):
        super().__init__()
        self.model = self.Parallel(self.model)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class Keywords(Theirs):
    def forward(self, input_values, pixel_values, attention_mask=None, labels=None, output_attentions=None):
        return Tuple(None, self.model(pixel_values, input_values, attention_mask, labels))


class OneAndTheRest(Theirs):
    def forward(self, pixel_values, **others):
        return Slots(self.model(pixel_values, **others))


class TakesDict(Theirs):
    def forward(self, batch):
        return self.model(**batch), "hidden states"


class TakesDictWithOptions(Theirs):
    def forward(self, batch, verbose=False):
        return {"logits": self.model(**batch)}


class RequiresLabels(Theirs):
    """As those of transformers with labels do: (loss, logits)."""

    def forward(self, pixel_values, input_values, attention_mask, labels):
        logits = self.model(pixel_values, input_values, attention_mask)
        return nn.functional.cross_entropy(logits, labels), logits


class RequiresTarget(Theirs):
    """By another name than that of the batch."""

    def forward(self, input_values, pixel_values, attention_mask, target):
        logits = self.model(pixel_values, input_values, attention_mask)
        return nn.functional.cross_entropy(logits, target)[None], logits


class LooksForLabels(Theirs):
    def forward(self, **batch):
        labels = batch.pop("labels")
        logits = self.model(**batch)
        return Output(logits, nn.functional.cross_entropy(logits, labels))


class LooksForLabelsInADict(Theirs):
    def forward(self, batch):
        labels, rest = batch["labels"], {name: value for name, value in batch.items() if name != "labels"}
        logits = self.model(**rest)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class InOrder(Theirs):
    def forward(self, first, second, attention_mask, labels=None):
        return self.model(first, second, attention_mask)


class LooksForLabelsAsAttribute(Theirs):
    def forward(self, batch):
        logits = self.model(batch.pixel_values, batch.input_values, attention_mask=batch.attention_mask)
        return nn.functional.cross_entropy(logits, batch.labels), logits


class WithoutForward(Theirs):
    """Its steps call ``self.model``."""


MODULES = [
    TakesEverything,
    Wraps,
    WrapsTwice,
    Keywords,
    OneAndTheRest,
    TakesDict,
    TakesDictWithOptions,
    RequiresLabels,
    RequiresTarget,
    LooksForLabels,
    LooksForLabelsInADict,
    WithoutForward,
]


class Encoding(UserDict):
    """As collators of transformers give batches: no dict, entries are attributes too, and it moves itself."""

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError from None

    def to(self, device):
        return Encoding({name: value.to(device) for name, value in self.data.items()})


Row = namedtuple("Row", ["labels", "input_values", "pixel_values", "attention_mask"])


@dataclass
class Record:
    attention_mask: torch.Tensor
    input_values: torch.Tensor
    pixel_values: torch.Tensor
    labels: torch.Tensor
    path: str = "somewhere"


FORMS = {
    "dict": lambda b: b,
    "encoding": Encoding,
    "pair": lambda b: ({n: v for n, v in b.items() if n != "labels"}, b["labels"]),
    "pair, encoding": lambda b: (Encoding({n: v for n, v in b.items() if n != "labels"}), b["labels"]),
    "named tuple": lambda b: Row(**b),
    "dataclass": lambda b: Record(**b),
    "with names of files": lambda b: b | {"path": ["a.wav"] * B, "return_loss": False, "nothing": None},
}


def observers(**settings):
    return [
        CertifiedRobustness([0.1], constants="estimated", **settings),
        AdversarialRobustness(
            {"pgd": PGD(Budget(0.3), steps=3), "near": MinimumNorm(Budget(1.0), steps=5), "gone": MissingModality()},
            **settings,
        ),
        MissingModalities(**settings),
    ]


def found_by(module, data, make_trainer, **settings):
    trainer = make_trainer(*observers(**{"inputs": NAMES} | settings))
    (found,) = trainer.validate(module, DataLoader([data], batch_size=None), verbose=False)
    return found


#: All that the observers find, in one of the forms.
REFERENCE = {}


@pytest.fixture(scope="module")
def expected():
    """The same numbers by one module that is known to be understood: three inputs by position."""
    b, net = batch(), Net()

    class Known(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, pixel_values, input_values):
            return net(pixel_values, input_values, MASK[: len(pixel_values)])

    known, y = Known(), b["labels"]
    right = (known(b["pixel_values"], b["input_values"]).argmax(dim=1) == y).float().mean().item()
    blind = known(torch.zeros_like(b["pixel_values"]), b["input_values"])
    deaf = known(b["pixel_values"], torch.zeros_like(b["input_values"]))
    return {
        "val/clean_accuracy/pgd": right,
        "val/accuracy_zeroed/none": right,
        "val/accuracy_zeroed/pixel_values": (blind.argmax(dim=1) == y).float().mean().item(),
        "val/accuracy_zeroed/input_values": (deaf.argmax(dim=1) == y).float().mean().item(),
    }


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, "dict") for kind in MODULES),
        (LooksForLabelsAsAttribute, "encoding"),
        *((kind, form) for kind in (TakesEverything, RequiresLabels, TakesDict) for form in FORMS if form != "dict"),
    ],
)
def test_every_observer_measures_every_module_alike(kind, form, expected, make_trainer):
    found = found_by(kind(), FORMS[form](batch()), make_trainer)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-6), key
    if not REFERENCE:
        REFERENCE.update(found_by(Keywords(), batch(), make_trainer))
    assert found == pytest.approx(REFERENCE, rel=1e-5)
    assert found["val/estimated_radius/joint"] > 0
    assert found["val/robust_accuracy/pgd@0.3"] < found["val/clean_accuracy/pgd"]


class One(Theirs):
    """One modality, in a batch of which forward takes all or a tensor."""

    def forward(self, batch):
        values = batch if isinstance(batch, torch.Tensor) else batch["input_values"] * batch["attention_mask"]
        return self.model.audio(values)


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_a_batch_of_one_modality(make_trainer):
    b = batch()
    masked = {"input_values": b["input_values"] * MASK, "labels": b["labels"]}
    b.pop("pixel_values")
    by_name = found_by(One(), b, make_trainer, inputs=["input_values"])
    by_place = found_by(One(), tuple(masked.values()), make_trainer, inputs=["input_values"])
    for key in ("accuracy_zeroed/none", "clean_accuracy/pgd", "margin/joint"):
        assert by_name[f"val/{key}"] == pytest.approx(by_place[f"val/{key}"])


@pytest.mark.parametrize("form", [tuple, list])
def test_inputs_in_a_row_and_a_target(form):
    b = batch()

    class Plain(LightningModule):
        def forward(self, first, second):
            return first, second

    model = NamedModel(Plain(), NAMES)
    for given in ([b[n] for n in NAMES] + [b["labels"]], [form(b[n] for n in NAMES), b["labels"]]):
        inputs, target = model.split_batch(form(given))
        assert [inputs[name] is b[name] for name in NAMES] == [True, True]
        assert target is b["labels"]
        assert model(inputs) == (b["pixel_values"], b["input_values"])


class Both(Theirs):
    """Text as a mapping, as a tokenizer gives it."""

    def forward(self, image, text):
        assert isinstance(text, Encoding)
        assert text.keys() == {"inputs_embeds", "attention_mask"}
        return self.model(image, text["inputs_embeds"], text["attention_mask"])


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_a_modality_may_be_a_mapping(make_trainer):
    b = batch()
    text = Encoding({"attention_mask": MASK, "inputs_embeds": b["input_values"]})
    data = {"image": b["pixel_values"], "text": text, "labels": b["labels"]}
    found = found_by(Both(), data, make_trainer, inputs=("image", "text"))
    reference = found_by(Keywords(), b, make_trainer)
    assert found["val/estimated_radius/text"] == pytest.approx(reference["val/estimated_radius/input_values"])
    assert found["val/robust_accuracy/pgd@0.3"] == reference["val/robust_accuracy/pgd@0.3"]
    inputs, _ = NamedModel(Both(), ("image", "text")).split_batch(data)
    assert list(inputs) == ["image", "text", "text.attention_mask"]


def as_ours(given):
    """A batch that nothing understands."""
    return {"pixel_values": given[0][0], "input_values": given[0][1], "attention_mask": given[1]}, given[2]["y"] - 7


def odd_batch():
    b = batch()
    return [[b["pixel_values"], b["input_values"]], b["attention_mask"], {"y": b["labels"] + 7}, None]


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
@pytest.mark.parametrize("split", [as_ours, "test_other_modules.as_ours"])
def test_a_function_splits_batches_of_another_form(split, make_trainer):
    found = found_by(Keywords(), odd_batch(), make_trainer, split_batch=split)
    assert found == found_by(Keywords(), batch(), make_trainer)
    with pytest.raises(TypeError, match=r"a batch must be .* for another form give split_batch="):
        found_by(Keywords(), odd_batch(), make_trainer)


def test_the_function_may_come_from_yaml(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    parser.add_argument("--config", action="config")
    for name, settings in {
        "MissingModalities": "",
        "CertifiedRobustness": "constants: estimated, ",
        "AdversarialRobustness": "attacks: {pgd: {class_path: lightning_crmt.attacks.PGD, "
        "init_args: {budget: {radius: 0.1, mask: {input_values: .attention_mask, pixel_values: null}}}}}, ",
    }.items():
        path = tmp_path / "config.yaml"
        path.write_text(
            f"callback:\n  class_path: lightning_crmt.callbacks.{name}\n"
            f"  init_args: {{{settings}inputs: [pixel_values], split_batch: test_other_modules.as_ours}}\n"
        )
        callback = parser.instantiate_classes(parser.parse_args(["--config", str(path)])).callback
        assert callback.split_batch.__name__ == "as_ours"
        if name == "AdversarialRobustness":
            assert callback.attacks["pgd"].budget.mask == {"input_values": ".attention_mask", "pixel_values": None}


class Masked(nn.Module):
    out_features = T

    def forward(self, x, attention_mask):
        return x * attention_mask


def test_a_modality_of_a_crmt_module_may_be_a_mapping(make_trainer):
    module, b = CRMTModule({"text": Masked()}, 3), batch()
    text = Encoding({"attention_mask": MASK, "inputs_embeds": b["input_values"]})
    (found,) = make_trainer().validate(
        module, DataLoader([({"text": text}, b["labels"])], batch_size=None), verbose=False
    )
    flat = {"text": b["input_values"], "text.attention_mask": MASK}
    right = (module(flat).logits.argmax(dim=1) == b["labels"]).float().mean().item()
    assert found["val/accuracy/joint"] == pytest.approx(right)


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_it_may_split_batches_of_a_crmt_module_too(make_trainer):
    class Ours(CRMTModule):
        def validation_step(self, batch, index): ...

    model, b = Ours({"a": MLP(12, 8), "b": MLP(T, 8)}, 3), batch()

    def split(given):
        return {"a": given["pixel_values"], "b": given["input_values"]}, given["labels"]

    settings = {"inputs": None, "split_batch": split}
    found = found_by(model, b, make_trainer, **settings)
    ours = found_by(model, split(b), make_trainer, inputs=None)
    assert found == ours


class Seen(Theirs):
    """Notes what it was called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, **batch):
        self.seen.append(batch)
        return self.model(**batch)


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_padding_stays_and_labels_are_not_handed_over(make_trainer):
    module, b = Seen(), batch()
    found_by(module, b, make_trainer)
    assert len(module.seen) > 10
    for seen in module.seen:
        assert list(seen) == [*NAMES, "attention_mask"]
        padding = seen["attention_mask"] == 0
        values = seen["input_values"]
        if len(values) == B and values.any():  # not where it is missing
            assert values[padding].equal(b["input_values"][padding])
    attacked = [seen["input_values"] for seen in module.seen if len(seen["input_values"]) == B]
    assert any(not value.equal(b["input_values"]) and value.any() for value in attacked)


@pytest.mark.parametrize(
    "output",
    [
        lambda z: z,
        lambda z: (z, "hidden"),
        lambda z: [z],
        lambda z: (z.sum(), z),
        lambda z: (z.sum()[None], z, "hidden"),
        lambda z: {"logits": z},
        lambda z: Encoding({"loss": z.sum(), "logits": z}),
        Output,
        Slots,
        lambda z: Tuple("hidden", z),
        lambda z: FusionOutput(z, {}),
    ],
)
def test_where_logits_are_found(output):
    logits = torch.randn(4, 3)
    assert logits_of(output(logits)) is logits


@pytest.mark.parametrize(
    "output",
    [
        None,
        (),
        torch.zeros(3),
        torch.zeros(4, 1),
        Output(torch.zeros(4, 1)),
        Output(None),
        (torch.tensor(1.0),),
        (torch.tensor(1.0), "no logits"),
        {"scores": torch.zeros(4, 3)},
        {"logits": torch.zeros(4, 5, 3)},
    ],
)
def test_outputs_without_logits_are_refused(output):
    with pytest.raises(TypeError, match="a model must return logits of shape"):
        logits_of(output)
    if isinstance(output, Output) and output.logits is not None:
        with pytest.raises(TypeError, match=r"for a single logit z, return stack"):
            logits_of(output)


class Required(Theirs):
    def forward(self, pixel_values, input_values, attention_mask, speaker):
        return self.model(pixel_values, input_values, attention_mask)


class Nothing(LightningModule):
    def validation_step(self, batch, index): ...


class Strange(Theirs):
    def forward(self, one, two, three):
        return self.model(one, two, three)


@pytest.mark.parametrize(
    ("kind", "change", "error", "message"),
    [
        (Keywords, {"labels": None}, ValueError, "must hold 'target', 'label', 'labels' or 'y'.* give split_batch="),
        (Keywords, {"input_values": None}, ValueError, r"`inputs` names \['input_values'\], but the batch holds"),
        (
            Keywords,
            {"input_values": pack_sequence([torch.ones(3), torch.ones(2)])},
            TypeError,
            r"`inputs\['input_values'\]` must be a tensor .*, got a PackedSequence: pad it",
        ),
        (
            Keywords,
            {"input_values": torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged)},
            TypeError,
            "got a nested tensor: pad it",
        ),
        (Keywords, {"input_values": [1, 2]}, TypeError, "must be a tensor .*, got a list: give split_batch="),
        (
            Keywords,
            {"input_values": {"a": MASK, "b": MASK}},
            ValueError,
            "or a mapping that holds one as 'input_values'",
        ),
        (
            Keywords,
            {"attention_mask": MASK[:1]},
            ValueError,
            "'attention_mask', which `forward` of Keywords takes, must",
        ),
        (
            TakesEverything,
            {"scale": torch.tensor(2.0)},
            ValueError,
            "'scale', which `forward` of TakesEverything takes",
        ),
        (
            Required,
            {},
            ValueError,
            r"requires \['speaker'\], but beside .* the batch holds \['attention_mask', 'labels'\]",
        ),
        (
            Required,
            {"speaker": ["me"] * B},
            ValueError,
            "'speaker', which `forward` of Required takes, must be a tensor",
        ),
        (Strange, {}, ValueError, "do not tell how to call Strange.forward"),
        (Nothing, {}, ValueError, "Nothing must have a `forward` that gives logits, or a classifier as `self.model`"),
    ],
)
def test_what_cannot_be_understood_says_how_to_pass_it(kind, change, error, message, make_trainer):
    data = {name: value for name, value in (batch() | change).items() if value is not None}
    with pytest.raises(error, match=message):
        found_by(kind(), data, make_trainer)


@pytest.mark.parametrize("given", ["nowhere", "nowhere.at_all", "torch.no_such", 3, "math.pi"])
def test_a_function_that_is_none(given):
    with pytest.raises((ValueError, TypeError), match="`split_batch` must be a function"):
        MissingModalities(split_batch=given)


def test_what_the_function_must_return(make_trainer):
    with pytest.raises(
        TypeError, match=r"`split_batch` must return \(inputs, target\), inputs by name, got a Tensor|got a"
    ):
        found_by(Keywords(), batch(), make_trainer, split_batch=lambda b: b["input_values"])


def test_masks_that_hold_for_one_batch_are_refused():
    with pytest.raises(ValueError, match=r"must have masks that are names of what the batches hold"):
        AdversarialRobustness({"pgd": PGD(Budget(0.1, mask={"audio": MASK}))})


@dataclass
class Ids:
    ids: torch.Tensor = field(default_factory=lambda: torch.arange(B * T).reshape(B, T) % 9 + 1)


class ReadsIds(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.words = nn.Linear(12, 3), nn.EmbeddingBag(10, 3, padding_idx=0)

    def forward(self, pixel_values, input_ids, attention_mask):
        return self.image(pixel_values.flatten(1)) + self.words(input_ids * attention_mask)

    def validation_step(self, batch, index): ...


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
class Renames(LightningModule):
    """Its steps hand the batch's mask over under another name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(T, 3)

    def forward(self, input_values, mask=None, y=None):
        return self.linear(input_values if mask is None else input_values * mask)

    def validation_step(self, batch, index): ...


def mask_by_its_name(batch):
    return {"input_values": batch["input_values"], "mask": batch["attention_mask"]}, batch["labels"]


def left_out(record):
    return [str(each.message) for each in record if "is left out" in str(each.message)]


def test_a_mask_that_forward_calls_otherwise_is_told_once(make_trainer, recwarn):
    held = {**batch(), "index": torch.arange(B), "file_ids": list(range(B)), "length": 3}
    observe = [MissingModalities(inputs=["input_values"]) for _ in range(2)]
    loader, module = DataLoader([held, held], batch_size=None), Renames()
    for _ in range(2):
        make_trainer(*observe).validate(module, loader, verbose=False)
    (told,) = left_out(recwarn)
    assert "'attention_mask'" in told
    assert "Renames takes ['input_values', 'mask', 'y']" in told
    assert "split_batch=" in told


def test_a_mask_by_its_name_is_handed_over_and_nothing_told(recwarn):
    model, x = NamedModel(Renames(), ["input_values"], mask_by_its_name), batch()
    inputs, _ = model.split_batch(x)
    assert model(inputs).equal(model.module.linear(x["input_values"] * MASK))
    everything = NamedModel(TakesEverything(), NAMES)
    everything.split_batch({**x, "token_ids": MASK})
    assert not left_out(recwarn)


class Learns(Renames):
    """Several labels per sample, as the losses of transformers take them."""

    def forward(self, input_values):
        return self.linear(input_values)


def test_targets_of_floating_point_say_how_to_give_them(make_trainer):
    held = {"input_values": batch()["input_values"], "labels": (torch.arange(3 * B).view(B, 3) % 2).float()}
    loader, settings = DataLoader([held], batch_size=None), {"inputs": ["input_values"]}
    message = r"`target` of Learns .*float32 tensor .*\.bool\(\).*split_batch=.*crmt_criterion = Criterion\(multi_label"
    with pytest.raises(TypeError, match=message):
        make_trainer(MissingModalities(**settings)).validate(Learns(), loader, verbose=False)

    module = Learns()
    logits = module.linear(held["input_values"])
    right = ((logits > 0) == held["labels"].bool()).all(dim=1).float().mean().item()
    by_function = MissingModalities(**settings, split_batch=lambda x: (x, x["labels"].bool()))
    (found,) = make_trainer(by_function).validate(module, loader, verbose=False)
    module.crmt_criterion = Criterion(multi_label=True)
    (same,) = make_trainer(MissingModalities(**settings)).validate(module, loader, verbose=False)
    assert found["val/accuracy_zeroed/none"] == pytest.approx(right) == same["val/accuracy_zeroed/none"]


def test_token_ids_are_a_modality_that_stays_or_goes_missing(make_trainer):
    names, data = ("pixel_values", "input_ids"), batch() | {"input_ids": Ids().ids}
    callbacks = [
        CertifiedRobustness([0.1], constants="estimated", inputs=names),
        AdversarialRobustness({"pgd": PGD(Budget(0.3, modalities=["pixel_values"]), steps=3)}, inputs=names),
        MissingModalities(inputs=names),
    ]
    trainer, module = make_trainer(*callbacks), ReadsIds()
    (found,) = trainer.validate(module, DataLoader([data], batch_size=None), verbose=False)
    assert found["val/robust_accuracy/pgd@0.3"] <= found["val/clean_accuracy/pgd"]
    y, zeros = data["labels"], torch.zeros_like(data["input_ids"])
    deaf = module(data["pixel_values"], zeros, MASK).argmax(dim=1)
    assert found["val/accuracy_zeroed/input_ids"] == pytest.approx((deaf == y).float().mean().item())
    assert "val/estimated_radius/pixel_values" in found
    whole = make_trainer(AdversarialRobustness({"pgd": PGD(Budget(0.3))}, inputs=names))
    with pytest.raises(TypeError, match=r"`inputs\['input_ids'\]` must be floating point to be perturbed"):
        whole.validate(module, DataLoader([data], batch_size=None), verbose=False)
