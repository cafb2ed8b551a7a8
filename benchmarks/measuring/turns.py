# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Several works measured side by side: they take turns, so that what else the machine does meets all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Turns:
    """Seconds of each work, one entry per turn."""

    seconds: Mapping[str, list[float]]

    def milliseconds(self, name: str) -> float:
        """The median of one work."""
        return 1e3 * median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """The median, over the turns, of what ``name`` took over what ``to`` took in the same turn."""
        return median(one / other for one, other in zip(self.seconds[name], self.seconds[to], strict=True))


def in_turn(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> Turns:
    """Run each work once per turn, in order.

    Args:
        works: what is measured, by name.
        repeats: turns that count, at least 5 for a median that says something.
        warm_up: turns before them.
        clock: of the processor, which does not count what else runs, for one thread; ``time.perf_counter`` for more.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + repeats):
        for name, work in works.items():
            start = clock()
            work()
            took = clock() - start
            if turn >= warm_up:
                seconds[name].append(took)
    return Turns(seconds)
