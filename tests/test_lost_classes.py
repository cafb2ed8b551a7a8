# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A class that is hardly ever right is told of, once, and not on few samples."""

import pytest
import torch

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.callbacks import CertifiedRobustness
from lightning_crmt.callbacks.lost_classes import LostClasses
from lightning_crmt.encoders import LipschitzMLP

HARDLY = "classes hardly ever right"


def told(right, target, num_classes=3):
    lost = LostClasses(num_classes)
    for half in (slice(None, None, 2), slice(1, None, 2)):
        lost.add(torch.tensor(right)[half], torch.tensor(target)[half])
    return lost.told(lambda value, how: value)


def test_a_lost_class_is_told_of():
    assert told([True] * 60 + [False] * 20, [0] * 60 + [2] * 20) == (
        "1 of 3 classes hardly ever right, where 0.750 of all samples are: class 2 in 0 of 20"
    )


@pytest.mark.parametrize(
    ("right", "lost"),
    [
        ([True] * 60 + [False] * 19, 19),
        ([True] * 60 + [True] * 2 + [False] * 18, 20),
        ([True] * 45 + [False] * 20, 20),
    ],
    ids=["too few samples", "right more than a tenth as often as all", "much else is wrong"],
)
def test_others_are_not(right, lost):
    assert told(right, [0] * (len(right) - lost) + [1] * lost) is None


def test_the_number_of_lost_classes_is_told_where_they_are_many():
    text = told([True] * 500 + [False] * 180, [0] * 500 + [k for k in range(1, 10) for _ in range(20)], 10)
    assert text.startswith("9 of 10 ")
    assert text.endswith("class 5 in 0 of 20, ...")


@pytest.fixture
def without_nine(data):
    """A model that never answers 9, of data where it is right but for 40 samples."""
    torch.manual_seed(0)
    encoders = {"fou": LipschitzMLP(76, 12, ()), "mor": LipschitzMLP(6, 12, ())}
    still = lambda groups: torch.optim.SGD(groups, lr=0.0)  # noqa: E731
    model = CRMTModule(encoders, num_classes=10, head=LinearFusion, optimizer=still)
    with torch.no_grad():
        model.head.bias[9] = -1000
    data.setup()
    for part in data.parts.values():
        with torch.no_grad():
            part.target = model(part.inputs).logits.argmax(dim=1)
        part.target[:40] = 9
    return model


@pytest.mark.parametrize("level", ["sound", "estimated"])
def test_it_warns_once(without_nine, data, make_trainer, level):
    trainer = make_trainer(CertifiedRobustness([0.1], constants=level))
    text = f"^1 of 10 {HARDLY}, where 0.900 of all samples are: class 9 in 0 of 40. "
    with pytest.warns(UserWarning, match=text):
        trainer.test(without_nine, datamodule=data, verbose=False)
    trainer.test(without_nine, datamodule=data, verbose=False)  # warnings are errors here


def test_what_a_fit_has_not_learned_yet_is_not_lost(without_nine, data, make_trainer):
    callback = CertifiedRobustness([0.1])
    make_trainer(callback).fit(without_nine, datamodule=data)
    with pytest.warns(UserWarning, match=HARDLY):
        make_trainer(callback).validate(without_nine, datamodule=data, verbose=False)


def test_few_samples_say_nothing(without_nine, data, make_trainer):
    part = data.parts["test"]
    with torch.no_grad():
        part.target[15:40] = without_nine(part.inputs).logits.argmax(dim=1)[15:40]
    make_trainer(CertifiedRobustness([0.1])).test(without_nine, datamodule=data, verbose=False)
