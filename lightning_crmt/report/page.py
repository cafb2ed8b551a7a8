# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One page that holds a whole comparison, and needs neither a network nor scripts; needs the extra ``report``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_crmt.checks import require_package
from lightning_crmt.report.figures import Drawing, figures_of
from lightning_crmt.report.grouping import grouped, headline
from lightning_crmt.report.inline_svg import inline_svg
from lightning_crmt.report.raw_values import keys_of
from lightning_crmt.report.runs import Run
from lightning_crmt.report.settings_diff import what_differs
from lightning_crmt.report.short_verdict import short_verdict
from lightning_crmt.report.summary import OnData, Summary, summarise
from lightning_crmt.report.text_tables import TextTable, differences_table, means_table, ranks_table
from lightning_crmt.report.verdict import Answer, against_baseline, answers, guarantees, scope, threats_told
from lightning_crmt.report.wording import SURE, Wording, sureness
from lightning_crmt.version import __version__

#: The most numbers of a table; wider ones do not fit on paper.
_WIDEST = 8

#: What figures are called, by how their names begin.
_FIGURES = {
    "bounds": "what is known of robustness",
    "radius_curves": "accuracy over the radius",
    "budget_map": "separate radii of two modalities",
    "missing_grid": "missing modalities",
    "reliance": "which modality predictions follow",
    "worst_class": "the worst class",
    "differences": "differences to the baseline",
    "over_epochs": "over training",
    "cost": "cost against robustness",
}

_TEMPLATE = Path(__file__).with_name("page.html")

#: What cannot stand in a page: controls that are no white space, and halves of letters.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class _Section:
    """What the page says of some data."""

    on: OnData
    verdict: Sequence[Answer]
    answers: Sequence[Answer]
    guarantees: Sequence[Answer]
    baseline: Sequence[Answer]
    first: Sequence[TextTable]
    more: Sequence[TextTable]
    threats: Sequence[tuple[str, str]]
    figures: Sequence[tuple[str, str, str]]


def page_of(runs: Sequence[Run], *, baseline: str | None = None, title: str = "", command: str = "") -> str:
    """The page as HTML.

    Args:
        runs: those to compare, failed ones included, or a single one.
        baseline: the method that the others are compared with.
        title: of the page; by default it names the methods.
        command: what made the comparison; by default there are only those of the runs.

    Raises:
        ModuleNotFoundError: naming the extra, if jinja2 or matplotlib is not installed.
        ValueError: see :func:`~lightning_crmt.report.summarise`.

    >>> print(page_of([Run("joint", "mfeat", 0, {"test/accuracy/joint": 0.75})])[:15])
    <!DOCTYPE html>
    """
    jinja2 = require_package("jinja2", "the page needs jinja2", "report")
    summary = summarise(runs, baseline)
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page: str = template.render(
        title=title or _title(summary),
        scope=scope(summary),
        summary=summary,
        sections=[_section(on, summary, number) for number, on in enumerate(summary.on_data)],
        ranks=ranks_table("Mean rank over data sets", summary, headline(summary.ranks) or list(summary.ranks)),
        methods={run.method: run.about for run in runs if run.about},
        differs=what_differs(runs, summary.baseline),
        sure=SURE,
        sures=_sures(runs),
        words=_words(runs),
        choices=[run for run in runs if run.choice],
        settings=_settings(runs),
        environment=_environment(runs),
        runs=runs,
        incomplete=any(run.error for run in runs),
        raw=_raw(runs),
        command=command,
        commands=[run for run in runs if run.command],
        version=__version__,
    )
    return _NO_TEXT.sub("\ufffd", page)


def _title(summary: Summary) -> str:
    data = ", ".join(on.data for on in summary.on_data)
    few = ", ".join(summary.methods) if len(summary.methods) <= 4 else f"{len(summary.methods)} methods"
    return f"{few} on {data}"


def _section(on: OnData, summary: Summary, number: int) -> _Section:
    keys = headline(on.columns) or list(on.columns)[:8]
    first = [means_table(f"{on.data}: at a glance", on, keys)]
    if summary.baseline:
        title = f"{on.data}: differences to {summary.baseline}"
        first += [each for each in [differences_table(title, on, keys, summary.baseline)] if each is not None]
    more = []
    for group in grouped(on.columns):
        parts = [group.keys[at : at + _WIDEST] for at in range(0, len(group.keys), _WIDEST)]
        for place, part in enumerate(parts, 1):
            title = f"{on.data}: {group.title}" + (f", {place} of {len(parts)}" if len(parts) > 1 else "")
            more.append(means_table(title, on, part))
            if summary.baseline and group.name not in ("inside", "classes", "others"):
                title = f"{title}, differences to {summary.baseline}"
                more += [each for each in [differences_table(title, on, part, summary.baseline)] if each is not None]
    baseline = against_baseline(on, summary.baseline) if summary.baseline else []
    return _Section(
        on,
        short_verdict(on, summary.baseline),
        answers(on),
        guarantees(on),
        baseline,
        first,
        more,
        threats_told(on),
        _figures(on, summary.baseline, number),
    )


def _figures(on: OnData, baseline: str, number: int) -> list[tuple[str, str, str]]:
    """The title, the text and the picture of each figure."""
    found = []
    for place, (name, drawing) in enumerate(drawings_of(on, baseline).items()):
        title = f"{on.data}: {_figure_title(name)}"
        found.append((title, drawing.alt, inline_svg(drawing, f"figure-{number}-{place}", title)))
    return found


def drawings_of(on: OnData, baseline: str) -> dict[str, Drawing]:
    """The figures of some data by name, with differences to the baseline where it was run on them."""
    runs = [run for each in on.runs.values() for run in each]
    has_baseline = bool(baseline and on.runs[baseline])
    rc_context = require_package("matplotlib", "figures need matplotlib", "report").rc_context
    with rc_context({"text.parse_math": False}):  # names may have dollars
        drawings = figures_of(runs, baseline if has_baseline else None)
    return {name.rpartition("/")[2]: drawing for name, drawing in drawings.items()}


def _figure_title(name: str) -> str:
    """What a figure is called: its kind, and the rest of its name.

    >>> _figure_title("bounds_joint")
    'what is known of robustness, all modalities together'
    """
    kind = next((kind for kind in _FIGURES if name.startswith(kind)), "")
    rest = name.removeprefix(kind).strip("_").replace("_", " ")
    rest = "all modalities together" if rest == "joint" else rest
    return ", ".join(part for part in (_FIGURES.get(kind, ""), rest) if part)


def _sures(runs: Sequence[Run]) -> list[str]:
    held = {sureness(key) for key in keys_of(runs)}
    return [sure for sure in SURE if sure in held]


def _words(runs: Sequence[Run]) -> list[Wording]:
    threats = {name: threat for run in runs for name, threat in run.threats.items()}
    return [Wording(key, threats) for key in keys_of(runs)]


def _settings(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """The settings of the first run of each method on each data set."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for run in runs:
        if run.config:
            found.setdefault((run.method, run.data), (f"{run.method} on {run.data}, seed {run.seed}", run.config))
    return list(found.values())


def _environment(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Versions by name; where runs differ, all of them."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, version in run.versions.items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    return [(name, ", ".join(versions)) for name, versions in sorted(found.items())]


def _raw(runs: Sequence[Run]) -> tuple[list[Wording], list[tuple[Run, list[str]]]]:
    """What comes first of each run, with every digit."""
    keys = headline(keys_of(runs)) or keys_of(runs)[:8]
    rows = []
    for run in runs:
        numbers = run.keys()
        rows.append((run, [repr(numbers[key]) if key in numbers else "-" for key in keys]))
    return [words for words in _words(runs) if words.key in keys], rows
