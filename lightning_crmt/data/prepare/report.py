# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What became of the videos of a folder."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_MOST_LINES = 10


class Skipped(NamedTuple):
    """A broken video."""

    video: str
    """Path below the folder of videos."""
    kind: str
    """What could not be made."""
    reason: str
    """Why, in a line."""


@dataclass
class Report:
    """Counts of videos; as a string, a summary.

    Args:
        output: folder that was written to.
        videos: how many there are.
        already: of each kind, how many had it before.
        skipped: videos that were broken.
    """

    output: Path
    videos: int
    already: dict[str, int]
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def made(self) -> dict[str, int]:
        """Of each kind, how many have it since this run."""
        skipped = Counter(each.kind for each in self.skipped)
        return {kind: self.videos - already - skipped[kind] for kind, already in self.already.items()}

    @property
    def nothing(self) -> list[str]:
        """Kinds that not a single video has."""
        return [kind for kind, made in self.made.items() if not made + self.already[kind]]

    @property
    def path(self) -> Path:
        """Where the skipped videos are listed."""
        return self.output / "skipped.csv"

    def write(self) -> None:
        """List the skipped videos; of the kinds that this run was not about, those that were listed."""
        rows = list(self.skipped)
        # surrogateescape: names of files need not be UTF-8
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                before = [Skipped(*row) for row in list(csv.reader(file))[1:] if len(row) == len(Skipped._fields)]
            rows += [row for row in before if row.kind not in self.already]
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([Skipped._fields, *sorted(rows)])
        part.replace(self.path)

    def __str__(self) -> str:
        lines = [f"{self.videos} videos"]
        for kind, made in self.made.items():
            skipped = sum(each.kind == kind for each in self.skipped)
            lines.append(f"{kind}: {made} made, {self.already[kind]} already there, {skipped} skipped")
        reasons: dict[tuple[str, str], list[str]] = {}
        for video, kind, reason in self.skipped:
            reasons.setdefault((video, reason), []).append(kind)
        if reasons:
            lines.append(f"skipped, see {self.path}:")
            shown = [f"  {video}: {reason} ({', '.join(kinds)})" for (video, reason), kinds in reasons.items()]
            lines += shown[:_MOST_LINES]
            lines += [f"  and {len(shown) - _MOST_LINES} more"] if len(shown) > _MOST_LINES else []
        return "\n".join(lines)
