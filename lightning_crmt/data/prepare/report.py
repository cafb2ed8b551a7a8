# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What became of the videos of a folder."""

from __future__ import annotations

import csv
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
        videos: how many were found.
        made: of each kind, how many have it since this run.
        already: of each kind, how many had it before.
        skipped: videos that were broken.
    """

    output: Path
    videos: int
    made: dict[str, int]
    already: dict[str, int]
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def nothing(self) -> list[str]:
        """Kinds that not a single video has."""
        return [kind for kind in self.made if not self.made[kind] + self.already[kind]]

    @property
    def path(self) -> Path:
        """Where the skipped videos are listed."""
        return self.output / "skipped.csv"

    def write(self) -> None:
        """List the skipped videos; of the kinds that this run was not about, those that were listed."""
        part = self.path.with_suffix(".csv.part")
        rows = sorted([*self.skipped, *self._others()])
        # surrogateescape: names of files need not be UTF-8
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([Skipped._fields, *rows])
        part.replace(self.path)

    def _others(self) -> list[Skipped]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [Skipped(*row) for row in list(csv.reader(file))[1:] if len(row) == len(Skipped._fields)]
        return [row for row in rows if row.kind not in self.made]

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
            told = [f"  {video}: {reason} ({', '.join(kinds)})" for (video, reason), kinds in reasons.items()]
            lines += told[:_MOST_LINES]
            lines += [f"  and {len(told) - _MOST_LINES} more"] if len(told) > _MOST_LINES else []
        return "\n".join(lines)
