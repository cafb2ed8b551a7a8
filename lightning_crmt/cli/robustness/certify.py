# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt certify``: radii in which the predictions of a checkpoint stay, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from typing_extensions import override

from lightning_crmt.callbacks import CertifiedRobustness, Measurement, Samples, SmoothedRobustness
from lightning_crmt.certification import Certificate
from lightning_crmt.cli.robustness.evaluation import evaluate, inputs_of, status
from lightning_crmt.cli.robustness.options import FINISHED, Options, by_modality
from lightning_crmt.cli.robustness.results import Evidence, Row, cell, in_columns
from lightning_crmt.evaluation import Key
from lightning_crmt.smoothing import AnyCertificate, SmoothedCertificate
from lightning_crmt.soundness import Soundness
from lightning_crmt.training import NamedModel, callbacks_of

_WHAT = """How far the inputs of a checkpoint may be changed before a prediction does, in the l2 norm, in units of the
model's inputs; for each sample, and as the share that is right and certified to stay so."""

_FILE = "certificates.csv"

#: How many samples are smoothed by default: each takes hundreds of draws or more.
_FEW = 200

#: Options of the smoothed classifier.
_OF_SMOOTHING = ("sigma", "at", "alpha", "max_draws", "seed")

#: What each level promises.
_PROMISES = {
    Soundness.RIGOROUS: "within a radius no input changes the prediction of the model as it runs, rounding included",
    Soundness.SOUND: "within a radius no input changes the prediction in exact arithmetic",
    Soundness.PROBABILISTIC: "of the smoothed classifier, the class that the model answers most often under noise, and "
    "of no other; true with the stated probability",
    Soundness.ESTIMATED: "nothing is certified: the true radii may be smaller, as constants are gradients at samples",
}


def certify_command(words: Sequence[str], make: Callable[[list[str]], LightningCLI]) -> tuple[str, int]:
    """Do what the words say; what there is to tell at the end, and the exit status.

    Args:
        words: those after ``lightning-crmt certify``.
        make: makes model, data and Trainer from the words of ``fit``.

    Raises:
        SystemExit: with status 2 and the reason, for words that cannot be followed.
    """
    parser = Options("certify", _WHAT, _FILE)
    parser.add_argument(
        "--level", choices=("sound", "rigorous", "smoothed", "estimated"), default="sound",
        help="of trust; sound by default",
    )  # fmt: skip
    parser.add_argument("--radii", nargs="+", type=float, default=[], metavar="R", help="at which shares are counted")
    parser.add_argument(
        "--budget", action="append", type=by_modality, default=[], metavar="A=R,B=S",
        help="radii of several modalities at once; may be repeated",
    )  # fmt: skip
    smoothing = parser.add_argument_group("with --level smoothed, of the smoothed classifier")
    smoothing.add_argument(
        "--sigma", type=_sigma, metavar="S or A=S,B=T",
        help="of the noise, in units of the inputs; that of SmoothedRobustness in the config by default",
    )  # fmt: skip
    smoothing.add_argument(
        "--at", choices=("inputs", "features"), help="where there is noise; at the inputs by default"
    )
    smoothing.add_argument("--alpha", type=float, metavar="P", help="error probability of a sample; 0.001 by default")
    smoothing.add_argument("--max_draws", type=int, metavar="N", help="for each sample; 10,000 by default")
    smoothing.add_argument("--seed", type=int, metavar="N", help="of the noise; 0 by default")
    own, others = parser.parse(words)
    if own.at_least is not None and not own.radii and not own.budget:
        parser.error("--at_least needs --radii or --budget: a share of samples is compared with it")
    given = {name: getattr(own, name) for name in _OF_SMOOTHING if getattr(own, name) is not None}
    if given and own.level != "smoothed":
        parser.error(f"{', '.join(f'--{name}' for name in given)} must be with --level smoothed, got {own.level}")
    if own.level == "smoothed" and own.modalities is not None:
        parser.error("--modalities are those with noise where --level is smoothed: name them in --sigma")
    cli = make([*others, "--trainer.logger=false"])
    if own.samples is None and own.level == "smoothed":
        own.samples = _FEW
    settings = {"budgets": own.budget, "max_samples": own.samples, **inputs_of(own, cli)}
    observer: CertifiedSamples | SmoothedSamples
    with parser.checked():
        if own.level == "smoothed":
            observer = SmoothedSamples(_noise(given, cli), own.radii, folder=own.out / FINISHED, **settings, **given)
        else:
            observer = CertifiedSamples(own.radii, constants=own.level, modalities=own.modalities, **settings)
        observer.measurement(NamedModel(cli.model, observer.inputs, observer.split_batch))
    text, numbers = evaluate(parser, own, cli, observer, _FILE)
    below, code = status(parser, own, shares(numbers))
    return text + below, code


class _Rows(Evidence):
    """A row for each certificate."""

    budgets: list[dict[str, float]]

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.names: list[str] = []

    def keep(self, certificate: AnyCertificate, target: Tensor, samples: Samples, perturbed: Sequence[str]) -> None:
        """Keep those of a batch, whose radii are about the modalities ``perturbed``."""
        sets = {name: [name] for name in perturbed}
        if perturbed:
            sets = {"joint" if list(perturbed) == self.names else "+".join(perturbed): [*perturbed]} | sets
        self.rows += rows_of(certificate, target, samples, sets, self.budgets)

    @override
    def table(self, numbers: Mapping[Key, float]) -> str:
        return table_of(numbers)


class CertifiedSamples(CertifiedRobustness, _Rows):
    """The observer of constants, with a row for each sample."""

    def __init__(self, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        _Rows.__init__(self)

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        self.names = model.names
        return super().measurement(model)

    @override
    def on_certified(self, certificate: Certificate, target: Tensor, samples: Samples) -> None:
        chosen = self.modalities or certificate.sensitivities
        self.keep(certificate, target, samples, [name for name in self.names if name in chosen])

    @override
    def summary(self, rows: Sequence[Row], numbers: Mapping[Key, float]) -> dict[Key, float]:
        kept = {key: value for key, value in numbers.items() if key.sure}
        some = next(iter(kept))
        right = sum(row["right"] for row in rows) / len(rows)
        return {Key(some.split, "accuracy", "joint", loader=some.loader): right} | kept

    @override
    def protocol(self) -> dict[str, str]:
        which = "all modalities of real numbers" if self.modalities is None else ", ".join(self.modalities)
        return {
            "level": f"{self.constants}: {_PROMISES[self.constants]}",
            "norm": "l2, in units of the model's inputs",
            "perturbed": f"{which}, together and each alone, while all others stay clean",
        }


class SmoothedSamples(SmoothedRobustness, _Rows):
    """The observer of the smoothed classifier, with a row for each sample."""

    def __init__(self, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        _Rows.__init__(self)

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        self.names = model.names
        return super().measurement(model)

    @override
    def on_certified(self, certificate: SmoothedCertificate, target: Tensor, samples: Samples) -> None:
        self.keep(certificate, target, samples, [name for name in self.names if name in certificate.sigma])

    @override
    def summary(self, rows: Sequence[Row], numbers: Mapping[Key, float]) -> dict[Key, float]:
        return dict(numbers)

    @override
    def protocol(self) -> dict[str, str]:
        test = "sequential tests for the radii and budgets" if self.radii or self.budgets else "Clopper-Pearson"
        at = "the features of the encoders, as far as inputs can move them" if self.at == "features" else "the inputs"
        return {
            "level": f"smoothed: {_PROMISES[Soundness.PROBABILISTIC]}",
            "norm": "l2, in units of the model's inputs",
            "noise": f"Gaussian, of standard deviation {self.sigma} at {at}, seed {self.seed}",
            "confidence": f"each sample's claims are wrong with probability {self.alpha} at most; {test}, at most "
            f"{self.max_draws} draws for a sample",
        }


def rows_of(
    certificate: AnyCertificate,
    target: Tensor,
    samples: Samples,
    modalities: Mapping[str, Sequence[str]],
    budgets: Sequence[Mapping[str, float]],
) -> list[Row]:
    """A row for each sample of a batch: its prediction, and in which radii and budgets that stays.

    Args:
        certificate: of the batch.
        target: what is right.
        samples: which they are.
        modalities: sets of modalities that are perturbed, by what they are called.
        budgets: radii of several modalities at once.
    """
    sure = certificate.soundness.label
    target = target.to(certificate.prediction.device)
    right = certificate.prediction == target
    columns = {
        "index": samples.places,
        "target": target,
        "prediction": certificate.prediction,
        "right": right.all(dim=1) if right.dim() == 2 else right,
    }
    columns |= {f"{sure}_to_stay/{of}": certificate.radius(names) for of, names in modalities.items()}
    for budget in budgets:
        key = Key("", "to_stay", budget=tuple(budget.items()), sure=sure)
        columns[str(key)] = certificate.tolerates(budget)
    if isinstance(certificate, SmoothedCertificate):
        columns |= {"abstained": certificate.abstained, "draws": certificate.draws}
    values = {name: value.detach().cpu() for name, value in columns.items()}
    return [
        {"loader": samples.loader, **{name: cell(value[row]) for name, value in values.items()}}
        for row in range(len(samples.places))
    ]


def shares(numbers: Mapping[Key, float]) -> dict[Key, float]:
    """Of the numbers those that are compared with ``--at_least``: of all perturbed modalities together, and budgets."""
    together = _together(numbers)
    return {
        key: value
        for key, value in numbers.items()
        if key.what == "accuracy" and key.sure and (key.budget or (key.of == together and key.radius is not None))
    }


#: Numbers that tables have, by where their rows stand, and the titles of these.
_TITLES = {
    "smoothed_accuracy": (0, "right, smoothed"),
    "smoothed_abstained": (0, "without an answer, smoothed"),
    "accuracy": (1, "right, {}"),
    "accuracy_dropped": (1, "... with this one missing, {}"),
    "radius": (3, "mean {} radius"),
    "smoothed_draws": (4, "mean number of draws"),
    "smoothed_expected_wrong": (4, "wrong certificates expected, at most"),
}


def table_of(numbers: Mapping[Key, float]) -> str:
    """Shares and mean radii, by what is perturbed; accuracy first, then by radius."""
    together = _together(numbers)
    rows: dict[tuple[int, int, float, str], dict[str, str]] = {}
    for key, value in numbers.items():
        if key.what not in _TITLES:
            continue
        order, title = _TITLES[key.what]
        sure = key.sure.replace("_", " ")
        title = title.format(sure if key.size is None else f"{sure} at {_at(key)}").removesuffix(", ")
        number = "" if key.loader is None else f"loader {key.loader}: "
        place = (key.loader or 0, order + bool(key.budget), key.size or 0.0, f"{number}{title}")
        of = key.of if key.sure and not key.budget else together
        rows.setdefault(place, {})[of] = f"{value:.4f}"
    return in_columns({place[-1]: rows[place] for place in sorted(rows, key=lambda place: place[:3])})


def _at(key: Key) -> str:
    if key.radius is not None:
        return f"radius {key.radius:g}"
    return ", ".join(f"{name}={radius:g}" for name, radius in key.budget)


def _together(numbers: Mapping[Key, float]) -> str:
    radii = (key for key in numbers if key.sure and (key.what == "radius" or key.radius is not None))
    named = [key.of for key in radii if key.what in ("radius", "accuracy")]
    return next((of for of in named if of == "joint" or "+" in of), named[0] if named else "joint")


def _sigma(text: str) -> float | dict[str, float]:
    try:
        return float(text)
    except ValueError:
        return by_modality(text)


def _noise(given: dict[str, Any], cli: LightningCLI) -> Any:
    """What was said, or what the config says of the smoothed classifier.

    Raises:
        ValueError: if neither says anything.
    """
    if "sigma" in given:
        return given.pop("sigma")
    others = callbacks_of(cli.trainer, SmoothedRobustness)
    if not others:
        raise ValueError("--sigma must be given: the standard deviation of the noise, in units of the inputs")
    return others[0].sigma
