# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt certify``: radii in which the predictions of a checkpoint stay, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from typing_extensions import override

from lightning_crmt.callbacks import CertifiedRobustness, Measurement, Samples
from lightning_crmt.certification import Certificate
from lightning_crmt.cli.robustness.evaluation import evaluate, inputs_of, status
from lightning_crmt.cli.robustness.options import Options, by_modality
from lightning_crmt.cli.robustness.results import Evidence, Row, cell, in_columns
from lightning_crmt.evaluation import Key
from lightning_crmt.soundness import Soundness
from lightning_crmt.training import NamedModel

_WHAT = """How far the inputs of a checkpoint may be changed before a prediction does, in the l2 norm, in units of the
model's inputs; for each sample, and as the share that is right and certified to stay so."""

_FILE = "certificates.csv"

#: What each level promises.
_PROMISES = {
    Soundness.RIGOROUS: "within a radius no input changes the prediction of the model as it runs, rounding included",
    Soundness.SOUND: "within a radius no input changes the prediction in exact arithmetic",
    Soundness.PROBABILISTIC: "of the smoothed classifier; true with the stated probability",
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
        "--level", choices=("sound", "rigorous", "estimated"), default="sound", help="of trust; sound by default"
    )
    parser.add_argument("--radii", nargs="+", type=float, default=[], metavar="R", help="at which shares are counted")
    parser.add_argument(
        "--budget", action="append", type=by_modality, default=[], metavar="A=R,B=S",
        help="radii of several modalities at once; may be repeated",
    )  # fmt: skip
    own, others = parser.parse(words)
    if own.at_least is not None and not own.radii and not own.budget:
        parser.error("--at_least needs --radii or --budget: a share of samples is compared with it")
    cli = make([*others, "--trainer.logger=false"])
    with parser.checked():
        observer = CertifiedSamples(
            own.radii,
            constants=own.level,
            budgets=own.budget,
            modalities=own.modalities,
            max_samples=own.samples,
            **inputs_of(own, cli),
        )
        observer.measurement(NamedModel(cli.model, observer.inputs, observer.split_batch))
    text, numbers = evaluate(parser, own, cli, observer, _FILE)
    below, code = status(parser, own, shares(numbers))
    return text + below, code


class CertifiedSamples(CertifiedRobustness, Evidence):
    """The observer, with a row for each sample."""

    def __init__(self, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        self.rows: list[Row] = []
        self.names: list[str] = []

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        self.names = model.names
        return super().measurement(model)

    @override
    def on_certified(self, certificate: Certificate, target: Tensor, samples: Samples) -> None:
        perturbed = [name for name in self.names if name in (self.modalities or certificate.sensitivities)]
        sets = {name: [name] for name in perturbed}
        sets = {"joint" if perturbed == self.names else "+".join(perturbed): perturbed} | sets
        self.rows += rows_of(certificate, target, samples, sets, self.budgets)

    @override
    def summary(self, rows: Sequence[Row], numbers: Mapping[Key, float]) -> dict[Key, float]:
        kept = {key: value for key, value in numbers.items() if key.sure}
        some = next(iter(kept))
        right = sum(row["right"] for row in rows) / len(rows)
        return {Key(some.split, "accuracy", "joint", loader=some.loader): right} | kept

    @override
    def table(self, numbers: Mapping[Key, float]) -> str:
        return table_of(numbers)

    @override
    def protocol(self) -> dict[str, str]:
        which = "all modalities of real numbers" if self.modalities is None else ", ".join(self.modalities)
        return {
            "level": f"{self.constants}: {_PROMISES[self.constants]}",
            "norm": "l2, in units of the model's inputs",
            "perturbed": f"{which}, together and each alone, while all others stay clean",
        }


def rows_of(
    certificate: Certificate,
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


def table_of(numbers: Mapping[Key, float]) -> str:
    """Shares and mean radii, by what is perturbed; accuracy first, then by radius."""
    together = _together(numbers)
    rows: dict[tuple[int, int, float, str], dict[str, str]] = {}
    for key, value in numbers.items():
        order = {"accuracy": 0 if not key.sure else 2 if key.budget else 1, "accuracy_dropped": 1, "radius": 3}
        if key.what not in order:
            continue
        sure = key.sure.replace("_", " ")
        at = f"{sure} at {_at(key)}" if key.size is not None else ""
        title = {
            "accuracy": f"right, {at}" if at else "right",
            "accuracy_dropped": f"... with this one missing, {at}",
            "radius": f"mean {sure} radius",
        }[key.what]
        number = "" if key.loader is None else f"loader {key.loader}: "
        place = (key.loader or 0, order[key.what], key.size or 0.0, f"{number}{title}")
        rows.setdefault(place, {})[together if key.budget or not key.sure else key.of] = f"{value:.4f}"
    return in_columns({place[-1]: rows[place] for place in sorted(rows, key=lambda place: place[:3])})


def _at(key: Key) -> str:
    if key.radius is not None:
        return f"radius {key.radius:g}"
    return ", ".join(f"{name}={radius:g}" for name, radius in key.budget)


def _together(numbers: Mapping[Key, float]) -> str:
    named = [key.of for key in numbers if key.what == "radius" and key.sure]
    return next((of for of in named if of == "joint" or "+" in of), named[0] if named else "joint")
