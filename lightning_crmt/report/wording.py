# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Keys in plain words: what a number is, how sure, under which threat, in which units, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lightning_crmt.evaluation import Key

#: What is said of a number by how sure it is: in a word, and in a sentence.
SURE = {
    "certified": ("guaranteed", "A proof, not a test: no change within the threat can make these predictions wrong."),
    "probably_certified": (
        "guaranteed with a stated probability",
        "Holds for the smoothed classifier, for each sample with the probability 1 - alpha of the settings.",
    ),
    "robust": (
        "survived, not guaranteed",
        "An upper bound: these predictions withstood this attack, and a better attack may break more of them.",
    ),
    "estimated": (
        "estimated, no guarantee",
        "Computed from estimated constants. It promises nothing: the true robustness may be lower.",
    ),
    "": ("measured", "Counted on the samples as they are; nothing is said of changed inputs."),
}

#: What is to be said wherever guarantees of several methods stand side by side.
LOWER_GUARANTEE = (
    "A lower guarantee is no lower robustness: it is what could be proved, and of two equally robust methods the one "
    "whose bounds are looser proves less."
)

_CHANGED = {
    "certified": "are right and proved to stay so",
    "probably_certified": "are right and, with the stated probability, proved to stay so",
    "estimated": "are right and estimated to stay so",
}
#: What a missing modality is replaced by.
FILLS = {"zeroed": "all zeros", "dropped": "score left out", "imputed": "a fixed value"}
_RADIUS = {
    "certified": "guaranteed radius",
    "probably_certified": "radius guaranteed with the stated probability",
    "estimated": "estimated radius, no guarantee",
    "": "radius",
}

#: Quantities that are no accuracies: what they are, their unit, and whether more of them is better.
QUANTITIES = {
    "loss": ("mean cross-entropy", "nats", -1),
    "margin": ("mean margin of the right class", "logits of the model itself", 0),
    "integration_factor": ("how much the decision relies on it", "logits of the model itself", 0),
    "vulnerability": ("how fast a change of it can reduce the margin", "logits of the model itself, by radius", 0),
    "reliance": ("share of mis-aligned samples whose prediction follows it", "share of samples", 0),
    "smoothed_abstained": ("share without an answer of the smoothed classifier", "share of samples", -1),
    "smoothed_draws": ("mean number of noisy copies that were asked", "copies", 0),
    "smoothed_expected_wrong": ("how many certificates are wrong in the mean, at most", "certificates", 0),
    "smoothed_samples": ("how many samples were certified", "samples", 0),
}


def sureness(key: Key) -> str:
    """How sure a number is, as a key says it; an estimate at radius 0 is measured, as it needs no constants.

    >>> sureness(Key("test", "accuracy", "joint", 0.1, sure="estimated"))
    'estimated'
    >>> sureness(Key("test", "accuracy", "joint", 0.0, sure="estimated"))
    ''
    """
    return "" if key.sure == "estimated" and key.size == 0 else key.sure


@dataclass(frozen=True)
class Wording:
    """A key in plain words.

    Attributes:
        key: what is worded.
        threats: what each attack perturbs, by its name, as :class:`~lightning_crmt.report.Run` has it.

    >>> words = Wording(Key("test", "accuracy", "joint", radius=0.2, sure="certified"))
    >>> words.title
    'guaranteed right, all modalities up to 0.2'
    >>> words.meaning
    'share of samples that are right and proved to stay so whatever change is made to all modalities together, up to
    l2 radius 0.2'
    >>> words.sure, words.unit, words.better
    ('guaranteed', 'share of samples', 1)
    """

    key: Key
    threats: Mapping[str, str] | None = None

    @property
    def sure(self) -> str:
        """How sure, in a word or two."""
        return SURE[sureness(self.key)][0]

    @property
    def better(self) -> int:
        """1 if more is better, -1 if less is, 0 where neither is or methods cannot be compared."""
        what = self._what
        if what in QUANTITIES:
            return QUANTITIES[what][2]
        return int(self._is_share or self._is_radius or self._is_distance)

    @property
    def unit(self) -> str:
        """What it is counted in."""
        what = self._what
        if what in QUANTITIES:
            return QUANTITIES[what][1]
        if self._is_share:
            return "share of labels" if "label_accuracy" in what else "share of samples"
        if self._is_distance:
            return "size of the attack, in units of the inputs"
        return "l2 radius, in units of the inputs" if self._is_radius else "not known"

    @cached_property
    def title(self) -> str:
        """A few words, for the head of a column."""
        key, what = self.key, self._what
        if self._is_share and self._at_zero:
            text = f"right at radius 0, {self._perturbed_short or self._perturbed}{self._missing_short}"
        elif self._is_share and not key.sure:
            text = f"right, {self._measured_on}" if what != "smoothed_accuracy" else "smoothed classifier right"
        elif self._is_share and key.sure == "robust":
            text = f"right under {key.of or 'attack'}{self._up_to}"
        elif self._is_share:
            text = f"{self._promise} right, {self._perturbed_short}{self._up_to}{self._missing_short}"
        elif self._is_radius:
            text = f"{_RADIUS.get(key.sure, 'radius')}, {self._perturbed_short}{self._missing_short}"
        elif self._is_distance:
            text = f"{'median ' * what.endswith('_median')}distance of wrong answers, {key.of}"
        else:
            text = what.replace("_", " ") + (f", {key.of}" if key.of else "")
        if "label_accuracy" in what:
            text = f"labels {text}"
        if "_worst_class" in what:
            text += ", worst class"
        if "_of_class" in what:
            text = f"{text}, class {key.of}" if key.sure else text
        return text + self._where

    @cached_property
    def meaning(self) -> str:
        """What the number is, in a sentence without its full stop."""
        key, what = self.key, self._what
        if what in QUANTITIES:
            return f"{QUANTITIES[what][0]}{f', of {self._named(key.of)}' if key.of else ''}{self._where}"
        if self._is_distance:
            which = "median" if what.endswith("_median") else "mean"
            return (
                f"{which} distance of the nearest wrongly classified input that the attack {key.of} found; wrong "
                f"answers count as 0{self._where}"
            )
        if self._is_radius:
            return (
                f"mean {_RADIUS.get(key.sure, 'radius')} against changes of {self._perturbed}{self._missing_long}; "
                f"wrong answers count as 0{self._where}"
            )
        if not self._is_share:
            return f"a number that others logged as {key}"
        many = "labels" if "label_accuracy" in what else "samples"
        if self._at_zero:
            said = f"are right with no change made to {self._perturbed}{self._missing_long}"
        elif key.sure == "robust":
            said = f"are right and stay so under the attack {key.of}, which changes {self._attacked}{self._of_radius}"
        elif key.sure:
            said = f"{_CHANGED[key.sure]} whatever change is made to {self._perturbed}{self._of_radius}"
            said += self._missing_long
        elif what == "smoothed_accuracy":
            said = "the smoothed classifier answers, and rightly"
        else:
            said = f"are right, {self._measured_on}"
        if "_worst_class" in what:
            said += ", in the class where this share is lowest"
        if "_of_class" in what and key.sure:
            said += f", of those of class {key.of}"
        return f"share of {many} that {said}{self._where}"

    @property
    def threat(self) -> str:
        """What may be done to the inputs; empty where nothing is."""
        key = self.key
        if self._at_zero:
            return ""
        if key.sure == "robust":
            return f"attack {key.of} on {self._attacked}{self._of_radius}"
        return f"every change of {self._perturbed}{self._of_radius}" if key.sure else ""

    @property
    def _what(self) -> str:
        return self.key.what

    @property
    def _at_zero(self) -> bool:
        """Whether this was logged as an estimate, but of unchanged inputs."""
        return self.key.sure != sureness(self.key)

    @property
    def _is_share(self) -> bool:
        starts = ("accuracy", "label_accuracy", "clean_accuracy", "smoothed_accuracy", "clean_label_accuracy")
        return self._what.startswith(starts)

    @property
    def _is_radius(self) -> bool:
        return self._what in ("radius", "radius_dropped")

    @property
    def _is_distance(self) -> bool:
        return self._what.startswith("adversarial_distance")

    @property
    def _promise(self) -> str:
        return {"certified": "guaranteed", "probably_certified": "probably guaranteed", "estimated": "estimated"}[
            self.key.sure
        ]

    @property
    def _fill(self) -> str:
        return next((fill for fill in FILLS if self._what.endswith(f"_{fill}")), "")

    @property
    def _measured_on(self) -> str:
        of = self.key.of
        if self._what.startswith("clean_"):
            return f"samples that {of} attacks, unchanged" if of else "unchanged inputs"
        if "_of_class" in self._what:
            return f"class {of}"
        if self._what.endswith("_present"):
            return f"samples that have {_listed(of)} and nothing else"
        if self._fill:
            how = FILLS[self._fill]
            if of in ("none", "worst"):
                return "nothing missing" if of == "none" else f"whatever is missing ({how})"
            return f"without {_listed(of)} ({how})"
        return "unchanged inputs" if of in ("", "joint") else f"scores of {_listed(of)} alone"

    @property
    def _attacked(self) -> str:
        told = (self.threats or {}).get(self.key.of, "")
        if not told:
            return " and ".join(name for name, _ in self.key.budget) or "the inputs"
        where, *more = told.split(", ")
        norm = next((each for each in more if each.startswith("l")), "l2")
        rest = [each for each in more if each != norm]
        return f"{self._named(where)} ({', '.join([norm, *rest])})"

    @property
    def _perturbed(self) -> str:
        if self.key.budget:
            return f"{_listed('+'.join(name for name, _ in self.key.budget))} at once"
        if self._fill or "_of_class" in self._what:
            return "all modalities that are left" if self._fill else "all modalities together"
        return self._named(self.key.of)

    @property
    def _perturbed_short(self) -> str:
        if self.key.budget:
            return ""
        if self._fill or "_of_class" in self._what or self.key.of in ("", "joint"):
            return "all modalities" if not self._fill else "the others"
        return _listed(self.key.of)

    @property
    def _missing_short(self) -> str:
        return f", without {_listed(self.key.of)}" if self._fill and self.key.sure else ""

    @property
    def _missing_long(self) -> str:
        return f", with {_listed(self.key.of)} missing ({FILLS[self._fill]})" if self._fill else ""

    @property
    def _up_to(self) -> str:
        if self.key.budget:
            return " " * (self.key.sure == "robust") + self._budget
        return "" if self.key.radius is None else f" up to {self.key.radius:g}"

    @property
    def _of_radius(self) -> str:
        if self.key.budget:
            return f": {self._budget}"
        if self.key.radius is None:
            return ""
        norm = "" if self.key.sure == "robust" else "l2 "
        return f", up to {norm}radius {self.key.radius:g}"

    @property
    def _budget(self) -> str:
        return " and ".join(f"{name} up to {radius:g}" for name, radius in self.key.budget)

    @property
    def _where(self) -> str:
        parts = {"val": " (validation part)", "train": " (in training)"}.get(self.key.split, "")
        return parts + ("" if self.key.loader is None else f" (loader {self.key.loader})")

    @staticmethod
    def _named(of: str) -> str:
        return "all modalities together" if of in ("", "joint") else _listed(of)


def _listed(names: str) -> str:
    *first, last = names.split("+")
    return f"{', '.join(first)} and {last}" if first else last
