# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt attack``: how many predictions of a checkpoint withstand attacks."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.cli import LightningCLI
from typing_extensions import override

from lightning_crmt import attacks
from lightning_crmt.attacks import Attack, Budget, BudgetedAttack
from lightning_crmt.callbacks import AdversarialRobustness, Attacked
from lightning_crmt.checks import did_you_mean
from lightning_crmt.cli.explain import import_class
from lightning_crmt.cli.robustness.evaluation import evaluate, inputs_of, status
from lightning_crmt.cli.robustness.options import Options, by_modality
from lightning_crmt.cli.robustness.results import Evidence, Row, cell, in_columns
from lightning_crmt.evaluation import Key
from lightning_crmt.training import NamedModel

_WHAT = """How many predictions of a checkpoint withstand attacks: upper bounds of its robustness, for each sample and
as the share that is right and stays so. `lightning-crmt methods` lists attacks."""

_FILE = "attacks.csv"

#: What stands for all attacks together, where there are several.
_ALL = "all"

#: Ready-made settings.
_PRESETS = ("strongest", "paper_pgd", "paper_fgm")

#: Options that attacks take if they have such a setting.
_SETTINGS = ("steps", "restarts", "seed")


def attack_command(words: Sequence[str], make: Callable[[list[str]], LightningCLI]) -> tuple[str, int]:
    """Do what the words say; what there is to tell at the end, and the exit status.

    Args:
        words: those after ``lightning-crmt attack``.
        make: makes model, data and Trainer from the words of ``fit``.

    Raises:
        SystemExit: with status 2 and the reason, for words that cannot be followed.
    """
    parser = Options("attack", _WHAT, _FILE)
    parser.add_argument(
        "--attack", action="append", metavar="NAME",
        help=f"a class, such as APGD, or {', '.join(_PRESETS)}; may be repeated; {_PRESETS[0]} by default",
    )  # fmt: skip
    parser.add_argument("--radii", nargs="+", type=float, metavar="R", help="of the budget, in units of the inputs")
    parser.add_argument(
        "--budget", type=by_modality, metavar="A=R,B=S", help="in place of --radii: one for each of several modalities"
    )
    parser.add_argument("--norm", choices=("l2", "linf"), default="l2", help="of perturbations; l2 by default")
    parser.add_argument("--steps", type=int, metavar="N", help="of each attack; its own number by default")
    parser.add_argument("--restarts", type=int, metavar="N", help="of each attack; its own number by default")
    parser.add_argument("--seed", type=int, metavar="N", help="of random starts; 0 by default")
    own, others = parser.parse(words)
    if (own.radii is None) == (own.budget is None):
        parser.error("give either --radii or --budget: what an attack may do must have a size")
    if own.budget is not None and own.modalities is not None:
        parser.error("--modalities are named by --budget already")
    cli = make([*others, "--trainer.logger=false"])
    with parser.checked():
        budget = Budget(own.budget or 1.0, modalities=own.modalities, norm=own.norm)
        observer = AttackedSamples(
            _attacks(own, budget),
            radii=own.radii or [1.0],
            max_samples=own.samples,
            **inputs_of(own, cli),
        )
        named = NamedModel(cli.model, observer.inputs, observer.split_batch)
        if unknown := [name for name in own.budget or own.modalities or () if name not in named.names]:
            option = "--budget" if own.budget else "--modalities"
            parser.error(f"{option} must name modalities among {named.names}, got {unknown}")
    text, numbers = evaluate(parser, own, cli, observer, _FILE)
    below, code = status(parser, own, {key: value for key, value in numbers.items() if key.sure == "robust"})
    return text + below, code


class AttackedSamples(AdversarialRobustness, Evidence):
    """The observer, with a row for each sample, and all attacks together as one more."""

    def __init__(self, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        self.rows: list[Row] = []
        self.doubts: list[str] = []

    @override
    def on_attacked(self, attacked: Attacked) -> None:
        right = attacked.prediction == attacked.target.to(attacked.prediction.device)
        columns = {
            "index": attacked.samples.places,
            "target": attacked.target,
            "prediction": attacked.prediction,
            "right": right.all(dim=1) if right.dim() == 2 else right,
        }
        columns |= {str(replace(key, what="stays_right", sure="")): each for key, each in attacked.withstood.items()}
        columns |= {f"size_of_perturbation/{name}": size for name, size in attacked.size.items()}
        values = {name: value.detach().cpu() for name, value in columns.items()}
        self.rows += [
            {"loader": attacked.samples.loader, **{name: cell(value[row]) for name, value in values.items()}}
            for row in range(len(attacked.samples.places))
        ]

    @override
    def on_doubts(self, doubts: Sequence[str]) -> None:
        super().on_doubts(doubts)
        self.doubts += doubts

    @override
    def summary(self, rows: Sequence[Row], numbers: Mapping[Key, float]) -> dict[Key, float]:
        own = {key: value for key, value in numbers.items() if key.of in self.attacks}
        if len(self.attacks) == 1:
            return own
        some = next(iter(own))
        clean = sum(row["right"] for row in rows) / len(rows)
        together = {Key(some.split, "clean_accuracy", _ALL, loader=some.loader): clean}
        by_threat: dict[Key, list[str]] = {}
        for key in own:
            if key.sure == "robust" and (key.radius is not None or key.budget):
                by_threat.setdefault(replace(key, of=_ALL), []).append(
                    str(replace(key, what="stays_right", sure="", split="", loader=None))
                )
        for key, columns in by_threat.items():
            together[key] = sum(all(row[column] for column in columns) for row in rows) / len(rows)
        return own | together

    @property
    @override
    def perturbed(self) -> dict[str, str]:
        threats = self.threats
        return threats | ({_ALL: next(iter(threats.values()))} if threats else {})

    @override
    def table(self, numbers: Mapping[Key, float]) -> str:
        rows: dict[str, dict[str, str]] = {}
        for key, value in numbers.items():
            at = ", ".join(f"{name}={radius:g}" for name, radius in key.budget)
            at = at if key.radius is None else f"radius {key.radius:g}"
            titles = {
                "clean_accuracy": "right",
                "accuracy": f"right under attack at {at}" if at else "right under attack",
                "adversarial_distance": "mean distance",
                "adversarial_distance_median": "median distance",
            }
            number = "" if key.loader is None else f"loader {key.loader}: "
            rows.setdefault(f"{number}{titles[key.what]}", {})[key.of] = f"{value:.4f}"
        return in_columns(rows)

    @override
    def protocol(self) -> dict[str, str]:
        budget = next((each.budget for each in self.attacks.values() if isinstance(each, BudgetedAttack)), None)
        said = {
            "level": "an upper bound of robustness: a better attack may find more",
            "attacked": "the model itself, without noise: nothing is said of a smoothed classifier",
        }
        if budget is not None:
            which = "all modalities of real numbers" if budget.modalities is None else ", ".join(budget.modalities)
            together = "each within its own radius" if isinstance(budget.radius, Mapping) else "together"
            if budget.norm == "linf":
                together = "each entry" if not isinstance(budget.radius, Mapping) else together
            said |= {"norm": f"{budget.norm}, in units of the model's inputs", "perturbed": f"{which}, {together}"}
        for name, attack in self.attacks.items():
            parts = getattr(attack, "attacks", [attack])  # of an ensemble
            said[f"attack {name}"] = "\n".join(f"{type(each).__name__}({_settings(each)})" for each in parts)
        said["doubts"] = "\n".join(doubt.removeprefix(", ") for doubt in self.doubts)
        return said


def _settings(attack: Attack) -> str:
    """Those of an attack that say something, but for its budget."""
    said = {name: value for name, value in vars(attack).items() if name != "budget"}
    return ", ".join(f"{name}={value}" for name, value in said.items() if value is not None and value is not False)


def _attacks(own: argparse.Namespace, budget: Budget) -> dict[str, Attack]:
    """Attacks by name.

    Raises:
        ValueError: for a name that none has, one that is given twice, or settings that none takes.
    """
    chosen = own.attack or [_PRESETS[0]]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--attack must be different ones, got {chosen}")
    given = {name: getattr(own, name) for name in _SETTINGS if getattr(own, name) is not None}
    made, taken = {}, set()
    for path in chosen:
        kind = _kind(path)
        takes = inspect.signature(kind).parameters
        settings = {name: value for name, value in given.items() if name in takes}
        taken |= set(settings)
        made[path.rpartition(".")[2]] = kind(budget, **settings) if "budget" in takes else kind(**settings)
    if idle := [f"--{name}" for name in given if name not in taken]:
        raise ValueError(f"{', '.join(idle)} must be a setting of an attack, got {chosen}, which have none")
    return made


def _kind(path: str) -> Callable[..., Attack]:
    if path in _PRESETS:
        preset: Callable[..., Attack] = getattr(attacks, path)
        return preset
    known = {name: value for name, value in vars(attacks).items() if inspect.isclass(value)}
    kind: Any = known.get(path) if "." not in path else import_class(path)
    if not inspect.isclass(kind) or not issubclass(kind, Attack) or inspect.isabstract(kind):
        names = [name for name, value in known.items() if issubclass(value, Attack) and not inspect.isabstract(value)]
        raise ValueError(
            f"--attack must be {', '.join(_PRESETS)} or a class of attack, got {path}"
            f"{did_you_mean(path, [*_PRESETS, *names])}"
        )
    return kind
