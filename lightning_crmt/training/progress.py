# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A progress bar beside the Trainer's own."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from typing_extensions import Self


class ProgressBar:
    """A bar with the time left that vanishes at the end; none where the Trainer shows none, and on other ranks.

    It is drawn by what draws the Trainer's own: two programs that draw on one terminal would spoil each other's lines.

    Args:
        trainer: the running Trainer.
        description: stands before the bar.
        total: steps that there will be; None where that is not known.
        after: seconds before which it does not show, so that what is quick shows none.

    >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    >>> with ProgressBar(trainer, "Counting", total=3) as bar:
    ...     for _ in range(3):
    ...         bar.update()
    """

    def __init__(self, trainer: Trainer, description: str, total: int | None, after: float = 0.0) -> None:
        own: Any = trainer.progress_bar_callback
        shown = trainer.is_global_zero and own is not None and getattr(own, "is_enabled", True)
        # That of RichProgressBar, whose package need not be installed.
        rich = getattr(own, "progress", None) if shown else None
        self._drawn: _RichTask | Tqdm
        if hasattr(rich, "add_task"):
            self._drawn = _RichTask(own, description, total, after)
        else:
            self._drawn = Tqdm(
                desc=description,
                total=total,
                disable=not shown,
                leave=False,
                dynamic_ncols=True,
                delay=after,
                smoothing=0.1,  # quick and slow steps may alternate: the time left is by the mean of the last ten or so
            )

    def update(self) -> None:
        """One more step is done."""
        self._drawn.update()

    def close(self) -> None:
        """Take the bar away; without effect if it is gone."""
        self._drawn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _RichTask:
    """A line among those of a RichProgressBar, which finds its own by their numbers: none may be removed."""

    def __init__(self, bar: Any, description: str, total: int | None, after: float) -> None:
        self._bar, self._progress = bar, bar.progress
        self._from = time.monotonic() + after
        steps = math.inf if total is None else total
        self._task = self._progress.add_task(description, total=steps, visible=after <= 0)

    def update(self) -> None:
        self._progress.update(self._task, advance=1, visible=time.monotonic() >= self._from)
        self._bar.refresh()

    def close(self) -> None:
        self._progress.update(self._task, visible=False)
        self._bar.refresh()
