# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of the logged robustness, sent to Weights & Biases or TensorBoard, or saved as files."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_crmt.callbacks.adversarial_robustness import AdversarialRobustness
from lightning_crmt.callbacks.certified_robustness import CertifiedRobustness
from lightning_crmt.evaluation import figure_type, read_keys, robustness_figures
from lightning_crmt.report import outputs_of
from lightning_crmt.training import callbacks_of


class RobustnessFigures(Callback):
    """Draws the curve over radii and the frontier over budgets after each test, and after the last validation of a fit.

    The figures come from the numbers that ``CertifiedRobustness``, ``AdversarialRobustness`` and ``SmoothedRobustness``
    logged; list this after them. Numbers of the first two about the same threat share a picture if both measure the
    same samples; those of a smoothed classifier are of another one, and never do. Figures go to
    Weights & Biases and TensorBoard where these log, and to ``figures/`` in the log directory otherwise. A test without
    anything to draw warns once; a disk that is full is a warning too.

    >>> callback = RobustnessFigures()
    """

    def __init__(self) -> None:
        self._warned = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        figure_type()  # before the work, not after it

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, "val")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._draw(trainer, "val")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, "test")

    def _draw(self, trainer: Trainer, split: str) -> None:
        # On every process: Lightning makes the processes agree on both.
        directory = Path(trainer.log_dir or trainer.default_root_dir)
        numbers = read_keys(trainer.callback_metrics)
        if not trainer.is_global_zero:
            return
        numbers = {key: value for key, value in numbers.items() if key.split == split}
        figures = robustness_figures(numbers, threats_of(trainer))
        if not figures and split == "test" and not self._warned:
            self._warned = True
            rank_zero_warn(
                "RobustnessFigures has nothing to draw: a curve needs two `radii` or more in CertifiedRobustness, "
                "AdversarialRobustness or SmoothedRobustness, listed before it"
            )
        try:
            for output in outputs_of(trainer.loggers, directory, trainer.global_step):
                for name, figure in figures.items():
                    output.figure(name, figure)
        except OSError as error:  # a full disk must not end a run that is done
            rank_zero_warn(f"RobustnessFigures could not save its figures, the numbers are logged: {error}")


def threats_of(trainer: Trainer) -> dict[str, str]:
    """What each attack perturbs: ``"joint"`` or modalities, in l2, or more words for any other threat.

    Marked where the samples are not those of the certificates, to keep pictures apart.

    Args:
        trainer: whose callbacks may be :class:`AdversarialRobustness` and :class:`CertifiedRobustness`.

    >>> from lightning_crmt.attacks import PGD, Budget
    >>> threats_of(Trainer(callbacks=[AdversarialRobustness({"pgd": PGD(Budget(0.2))})], logger=False))
    {'pgd': 'joint'}
    """
    limits = {(each.max_batches, each.max_samples) for each in callbacks_of(trainer, CertifiedRobustness)}
    threats: dict[str, str] = {}
    for each in callbacks_of(trainer, AdversarialRobustness):
        apart = ", other samples" if limits and limits != {(each.max_batches, each.max_samples)} else ""
        threats |= {name: f"{threat}{apart}" for name, threat in each.threats.items()}
    return threats
