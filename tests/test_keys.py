# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import random
import re
import struct

import pytest

from lightning_crmt.evaluation import Key, check_key_name, curves, read_keys

#: Every kind of key in the README, and what callbacks and methods log beside them.
LOGGED = {
    "val/loss": Key("val", "loss"),
    "train/loss": Key("train", "loss"),
    "train/integration_objective": Key("train", "integration_objective"),
    "val/accuracy/joint": Key("val", "accuracy", "joint"),
    "val/accuracy_zeroed/audio+image": Key("val", "accuracy_zeroed", "audio+image"),
    "val/accuracy_dropped/none": Key("val", "accuracy_dropped", "none"),
    "val/accuracy_imputed/worst": Key("val", "accuracy_imputed", "worst"),
    "val/certified_accuracy/joint@0.2": Key("val", "accuracy", "joint", 0.2, sure="certified"),
    "val/certified_accuracy/joint@3": Key("val", "accuracy", "joint", 3.0, sure="certified"),
    "val/certified_accuracy/joint@1e-05": Key("val", "accuracy", "joint", 1e-5, sure="certified"),
    "val/certified_accuracy/joint@1e+06": Key("val", "accuracy", "joint", 1e6, sure="certified"),
    "val/certified_accuracy/joint@0.1234567": Key("val", "accuracy", "joint", 0.1234567, sure="certified"),
    "val/certified_accuracy_worst_class/joint@0.2": Key("val", "accuracy_worst_class", "joint", 0.2, sure="certified"),
    "val/certified_accuracy_of_class/3@0.2": Key("val", "accuracy_of_class", "3", 0.2, sure="certified"),
    "val/certified_accuracy/audio=0.1+image=0.3": Key(
        "val", "accuracy", budget=(("audio", 0.1), ("image", 0.3)), sure="certified"
    ),
    "val/estimated_accuracy/audio=1e+06+image=1e-05": Key(
        "val", "accuracy", budget=(("audio", 1e6), ("image", 1e-5)), sure="estimated"
    ),
    "val/certified_accuracy_dropped/audio@0.1": Key("val", "accuracy_dropped", "audio", 0.1, sure="certified"),
    "val/estimated_radius/joint": Key("val", "radius", "joint", sure="estimated"),
    "val/certified_radius_dropped/audio": Key("val", "radius_dropped", "audio", sure="certified"),
    "test/robust_accuracy/pgd@0.1": Key("test", "accuracy", "pgd", 0.1, sure="robust"),
    "test/robust_accuracy/pgd@audio=0.1+image=0.3": Key(
        "test", "accuracy", "pgd", budget=(("audio", 0.1), ("image", 0.3)), sure="robust"
    ),
    "test/robust_accuracy/gone": Key("test", "accuracy", "gone", sure="robust"),
    "test/clean_accuracy/pgd": Key("test", "clean_accuracy", "pgd"),
    "val/adversarial_distance_median/near": Key("val", "adversarial_distance_median", "near"),
    "val/margin/joint": Key("val", "margin", "joint"),
    "val/vulnerability/audio": Key("val", "vulnerability", "audio"),
    "val/integration_factor/audio": Key("val", "integration_factor", "audio"),
    "val/robust_accuracy/pgd@0.1/dataloader_idx_1": Key("val", "accuracy", "pgd", 0.1, sure="robust", loader=1),
    "val/loss/dataloader_idx_0": Key("val", "loss", loader=0),
    "estimated_accuracy/joint@0.1": Key("", "accuracy", "joint", 0.1, sure="estimated"),
}


@pytest.mark.parametrize("text", LOGGED)
def test_documented_keys_are_written_and_read(text):
    assert str(LOGGED[text]) == text
    assert Key.parse(text) == LOGGED[text]
    assert hash(Key.parse(text)) == hash(LOGGED[text])


PIECES = [
    *"aZ09_-. +=@/(),:\\'\"\n\tßλ٣🦊",
    "joint",
    "none",
    "1e+06",
    "dataloader_idx_1",
    "val",
    "certified_",
    "robust",
]


def text_of(draw, most=4):
    return "".join(draw.choices(PIECES, k=draw.randint(0, most)))


def radius_of(draw):
    """Round numbers, and any bit pattern of a float that is one."""
    (any_float,) = struct.unpack("d", draw.randbytes(8))
    return draw.choice([0.0, -0.0, 3, 3.0, 0.1, 1e-5, 1e6, 1e-300, draw.random(), abs(any_float), any_float])


def random_key(draw):
    """With parts that a key may have or refuse; None where it does."""
    of = draw.choice(["", "joint", text_of(draw)])
    at = draw.choice(["none", "radius", "budget"])
    budget = tuple((text_of(draw), radius_of(draw)) for _ in range(draw.randint(1, 3))) if at == "budget" else ()
    try:
        return Key(
            draw.choice(["", "train", "val", "test"]),
            draw.choice(["accuracy", "loss", "certified", text_of(draw)]),
            of,
            radius_of(draw) if at == "radius" else None,
            budget,
            draw.choice(["", "certified", "estimated", "robust"]),
            draw.choice([None, 0, 7]),
        )
    except ValueError:
        return None


def test_every_key_that_can_be_made_is_read_back():
    draw = random.Random(0)
    keys = [key for key in (random_key(draw) for _ in range(8_000)) if key is not None]
    assert len(keys) > 2_000
    assert sum(len(key.budget) > 1 for key in keys) > 50
    assert sum(not (key.of or "x").isalnum() for key in keys) > 400
    texts = {}
    for key in keys:
        assert Key.parse(str(key)) == key, str(key)
        assert texts.setdefault(str(key), key) == key, "no two have the same text"


def test_every_text_that_is_read_has_a_key_that_is_read_back():
    draw, read = random.Random(1), 0
    for _ in range(8_000):
        text = "/".join(filter(None, [draw.choice(["val", ""]), text_of(draw), text_of(draw), text_of(draw, 1)]))
        try:
            key = Key.parse(text)
        except ValueError:
            continue
        read += 1
        assert Key.parse(str(key)) == key
    assert read > 1_000


def test_radii_are_written_as_short_as_they_read_back():
    draw = random.Random(2)
    for _ in range(2_000):
        radius = abs(radius_of(draw))
        if 1e-300 <= radius < float("inf"):
            text = str(Key("", "accuracy", "joint", radius)).split("@")[1]
            assert float(text) == radius
            assert text == f"{radius:g}" or float(f"{radius:g}") != radius, "six digits are written as ever"
            assert len(text) <= len(repr(float(radius)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"split": "valid"}, "`split` must be one of ('train', 'val', 'test') or empty, got 'valid'"),
        ({"sure": "surely"}, "`sure` must be one of ('certified', 'probably_certified', 'estimated', 'robust')"),
        ({"what": ""}, "`what` must be a word without '/' that is no split and no loader, got ''"),
        ({"what": "a/b"}, "`what` must be a word without '/' that is no split and no loader, got 'a/b'"),
        ({"what": "certified_radius"}, "`what` must leave it to `sure` to say 'certified', got 'certified_radius'"),
        (
            {"of": "a@b"},
            "`of` must have names that are not empty, do not begin with 'dataloader_idx_' and hold none of",
        ),
        ({"of": "a=1"}, "hold none of '/@=', which keys are made of, got 'a=1'"),
        ({"of": "dataloader_idx_1"}, "got 'dataloader_idx_1'"),
        ({"of": 3}, "`of` must have names that are not empty"),
        ({"budget": (("a+b", 0.1),)}, "hold none of '/@=+', which keys are made of, got 'a+b'"),
        ({"budget": (("", 0.1),)}, "`budget` must have names that are not empty"),
        ({"of": "a", "radius": -1.0}, "must be at least 0 and finite, got [-1.0]"),
        ({"of": "a", "radius": float("nan")}, "must be at least 0 and finite, got [nan]"),
        ({"budget": (("a", float("inf")),)}, "must be at least 0 and finite, got [inf]"),
        ({"radius": 0.1}, "`radius` must be of something"),
        ({"of": "a", "radius": 0.1, "budget": (("a", 0.1),)}, "and not beside a `budget`"),
        ({"loader": -1}, "`loader` must be at least 0, got -1"),
    ],
)
def test_what_would_be_ambiguous_is_refused(parts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Key(**({"split": "val", "what": "accuracy"} | parts))


@pytest.mark.parametrize("text", ["", "val", "val/accuracy/a/b", "val/accuracy/joint@much", "val/accuracy/a=", "a/b/c"])
def test_what_is_no_key_is_refused(text):
    with pytest.raises(
        ValueError, match=re.escape(f"a key reads like 'val/certified_accuracy/joint@0.2', got {text!r}")
    ):
        Key.parse(text)


def test_names_are_checked_before_there_is_a_key():
    check_key_name("attacks", "pgd+apgd, 50 steps")
    with pytest.raises(ValueError, match=re.escape("`attacks` must have names that are not empty")):
        check_key_name("attacks", "")
    check_key_name("inputs", "audio 2", modality=True)
    for name in ("a+b", "joint", "none", "worst"):
        with pytest.raises(ValueError, match=re.escape(f"got {name!r}")):
            check_key_name("inputs", name, modality=True)


def test_what_a_trainer_holds_is_read_once_and_other_names_are_left():
    metrics = {"val/accuracy/joint@0.1": 1, "grad_norm/encoders/a": 2.0, "val/certified_radius/joint": 0.5}
    assert read_keys(metrics) == {
        Key("val", "accuracy", "joint", 0.1): 1.0,
        Key("val", "radius", "joint", sure="certified"): 0.5,
    }


def test_curves_hold_what_differs_in_the_radius_alone():
    numbers = read_keys(
        {
            "val/certified_accuracy/joint@0.2": 0.7,
            "val/certified_accuracy/joint@0.1": 0.8,
            "val/estimated_accuracy/joint@0.1": 0.9,
            "test/certified_accuracy/joint@0.1": 0.6,
            "val/robust_accuracy/pgd@audio=0.1+image=0.3": 0.5,
            "val/certified_accuracy/audio=0.1+image=0.3": 0.4,
            "val/certified_radius/joint": 0.3,
        }
    )
    assert curves(numbers) == {
        Key("val", "accuracy", "joint", sure="certified"): {0.1: 0.8, 0.2: 0.7},
        Key("val", "accuracy", "joint", sure="estimated"): {0.1: 0.9},
        Key("test", "accuracy", "joint", sure="certified"): {0.1: 0.6},
        Key("val", "accuracy", "pgd", sure="robust"): {0.3: 0.5},
    }
    assert list(curves(numbers)[Key("val", "accuracy", "joint", sure="certified")]) == [0.1, 0.2]
