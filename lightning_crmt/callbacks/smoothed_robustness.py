# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Certificates of the smoothed classifier, in validation and test epochs: for any model, with a stated probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.callbacks.certificate_sums import CertificateSums, check_budgets, check_known
from lightning_crmt.callbacks.observer import Measurement, Observer, Samples, check_radii
from lightning_crmt.evaluation import Key, Reduce
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import present_of, select, widest
from lightning_crmt.smoothing import (
    BLOCK,
    Ablation,
    At,
    FinishedCertificates,
    SmoothedCertificate,
    SmoothedClassifier,
    fingerprint,
    joined,
    sample_digests,
)
from lightning_crmt.targets import check_answers, has_labels
from lightning_crmt.training import NamedModel, SplitBatch, callbacks_of
from lightning_crmt.version import __version__


class SmoothedRobustness(Observer):
    r"""Logs how robust the smoothed classifier is: what the module answers most often under noise on its inputs.

    It takes any classifier of one class per sample. All numbers are about the smoothed classifier, none about the
    module itself: see :class:`~lightning_crmt.SmoothedClassifier`. It needs hundreds to thousands of forward passes for
    each sample, so it measures ``max_samples`` of each loader alone, evenly spread, the same ones in any number of
    processes. Training is not changed, and draws come from generators of their own.

    Logged under ``val/`` and ``test/``, with ``joint`` or the name of a modality for *m*; where a modality has no
    Gaussian noise, the names of those that have, joined by ``+``, are in the place of ``joint``:

    - ``probably_certified_accuracy/m@r``: share of samples that are right and whose radius exceeds r; each certificate
      is wrong with probability at most ``alpha``;
    - ``probably_certified_accuracy_worst_class/joint@r``, ``probably_certified_accuracy_of_class/k@r``: the same for
      the class where it is lowest, and for each where there are at most 32;
    - ``probably_certified_accuracy/m=r+n=s``: share that is right and tolerates these budgets of m and n at once;
    - ``probably_certified_accuracy_dropped/m@r``: the same for the smoothed classifier without m, for each of
      ``missing``;
    - ``probably_certified_radius/m``: mean radius; 0 for a wrong answer and for none; only without ``radii`` and
      ``budgets``, as tests for these stop when they know enough, and then the radius says little;
    - ``smoothed_accuracy/joint``: share that is right; an abstention is not;
    - ``smoothed_abstained/joint``: share without an answer;
    - ``smoothed_draws/joint``: mean number of draws;
    - ``smoothed_expected_wrong/joint``: how many certificates are wrong in the mean, at most: alpha for each sample;
    - ``smoothed_samples/joint``: how many samples all this is of;

    the last five also as ``…_dropped/m``.

    Args:
        sigma: standard deviations of the noise in units of the inputs, a number for all modalities of real numbers or
            by modality; an :class:`~lightning_crmt.Ablation` for one of tokens.
        radii: l2 radii, in units of the inputs, at which accuracy is logged.
        budgets: budgets of several modalities at once, each a mapping of names to radii, or of tokens how many are
            replaced; one left out stays clean.
        missing: modalities that are also left out, one at a time; each costs as much again. The module must be able to
            go without, as CRMT modules are.
        at: ``"inputs"``, or ``"features"`` of a CRMT module whose encoders have a sound bound.
        alpha: the probability with which the claims about a sample may be wrong.
        max_draws: the most draws for a sample.
        max_samples: how many samples of each loader to measure, evenly spread over it and all processes, each once.
        batch_size: the most noisy samples in a forward pass, at least 64.
        seed: of the noise.
        folder: keeps each finished certificate; what was stopped goes on from there when it is started again, with the
            same numbers. It is looked up by the sample, the weights and these settings; a change of the code of the
            module needs another folder.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        split_batch: a function from a batch to ``(inputs, target)``, inputs by name, or its import path, for batches of
            another form.
        every_n_epochs: during a fit, measure at the first validation, then once every n epochs, and in the last epoch;
            ``validate`` and ``test`` always measure.

    Raises:
        ValueError: if a setting is out of range; on ``setup``, if there are two, whose numbers would have the same
            names, or names are needed and missing.
        TypeError: if the module answers several labels per sample.
        ValueError, TypeError, NoBoundError: at the sanity check, if there is one, as
            :meth:`~lightning_crmt.SmoothedClassifier.certify`.

    >>> callback = SmoothedRobustness({"image": 0.25, "audio": 0.5}, radii=[0.1, 0.2], inputs=("image", "audio"))
    """

    def __init__(
        self,
        sigma: float | Mapping[str, float | Ablation],
        radii: Sequence[float] = (),
        *,
        budgets: Sequence[Mapping[str, float]] = (),
        missing: Sequence[str] = (),
        at: At = "inputs",
        alpha: float = 0.001,
        max_draws: int = 10_000,
        max_samples: int | None = 200,
        batch_size: int = 1024,
        seed: int = 0,
        folder: str | Path | None = None,
        inputs: Sequence[str] | None = None,
        split_batch: SplitBatch | str | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(inputs=inputs, split_batch=split_batch, every_n_epochs=every_n_epochs, max_samples=max_samples)
        self.radii = check_radii(radii if isinstance(radii, Sequence) else [radii])
        self.budgets = check_budgets(budgets)
        if isinstance(missing, str):
            raise TypeError(f"`missing` must be a sequence of names, got the string {missing!r}")
        self.missing = list(missing)
        self.sigma, self.at, self.alpha, self.max_draws = sigma, at, alpha, max_draws
        self.batch_size, self.seed = batch_size, seed
        self.folder = None if folder is None else Path(folder)
        self.smoothed(torch.nn.Identity())  # an error now if a setting is none

    def smoothed(self, model: torch.nn.Module, max_draws: int | None = None) -> SmoothedClassifier:
        """The smoothed classifier of a model by these settings.

        Args:
            model: a CRMT module, or a function of inputs by name.
            max_draws: in place of that of the settings.
        """
        return SmoothedClassifier(
            model,
            self.sigma,
            at=self.at,
            alpha=self.alpha,
            max_draws=max_draws or self.max_draws,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def on_certified(self, certificate: SmoothedCertificate, target: Tensor, samples: Samples) -> None:
        """Called with the certificate of each measured batch, and what is right; does nothing by default."""

    @property
    @override
    def parts(self) -> int:
        return 16  # of each batch: it may take minutes

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if len(callbacks_of(trainer, SmoothedRobustness)) > 1:
            raise ValueError("there must be one SmoothedRobustness in a Trainer: numbers of two have the same names")

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        noisy = list(self.sigma) if isinstance(self.sigma, Mapping) else []
        budgeted = [name for budget in self.budgets for name in budget]
        check_known(model.names, sigma=noisy, budgets=budgeted, missing=self.missing)
        if getattr(getattr(model.module, "crmt_criterion", None), "multi_label", False):
            raise TypeError(_LABELS.format(f"{type(model.module).__name__} answers labels"))
        return _Smoothed(self, model)


_LABELS = "SmoothedRobustness needs one class per sample, as a smoothed classifier answers one; {}"


class _Smoothed(CertificateSums):
    """Certifies a few samples at a time, and looks up those that are finished."""

    def __init__(self, settings: SmoothedRobustness, model: NamedModel) -> None:
        fixed = not settings.radii and not settings.budgets
        super().__init__(settings.radii, settings.budgets, model.names, mean_radii=fixed)
        self.settings = settings
        self.model = model
        self.finished: FinishedCertificates | None = None
        self.of_all = ""

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        if has_labels(target):
            raise TypeError(_LABELS.format(f"`target` has shape {tuple(target.shape)}"))
        if self.trial:
            some = torch.arange(min(2, len(target)))
            self._certificates(select(inputs, some))
            return
        portions = self._portions(len(target))
        found = []
        for number, rows in enumerate(portions):
            found.append(self._certificates(select(inputs, rows)))
            # The last part of the batch is told of by the observer.
            for _ in range(self._told(number + 1, len(portions)) - self._told(number, len(portions))):
                self.part_done()
        whole = {name: joined([each[name] for each in found]) for name in found[0]}
        self._add(whole, target, present_of(inputs))

    def _add(
        self, certificates: Mapping[str, SmoothedCertificate], target: Tensor, present: Mapping[str, Tensor]
    ) -> None:
        for name, certificate in certificates.items():
            target = check_answers(target, certificate.num_classes, len(target)).to(certificate.prediction.device)
            noisy = [each for each in self.names if each in certificate.sigma]
            if not name:
                self.settings.on_certified(certificate, target, self.samples)
                self.add_certificate(certificate, target, present, noisy)
            elif noisy:
                self.add_dropped(certificate, target, present, noisy, name)
            when, of = ("_dropped", name) if name else ("", "joint")
            self.means.add(
                {
                    Key("", f"smoothed_accuracy{when}", of): certificate.prediction == target,
                    Key("", f"smoothed_abstained{when}", of): certificate.abstained,
                    Key("", f"smoothed_draws{when}", of): certificate.draws,
                }
            )

    def _certificates(self, inputs: dict[str, Tensor]) -> dict[str, SmoothedCertificate]:
        """Those of a few samples, by the name of what is missing, empty for nothing."""
        return {name: self._certificate(inputs, name) for name in ["", *self.settings.missing]}

    def _certificate(self, inputs: dict[str, Tensor], missing: str) -> SmoothedCertificate:
        finished = self._finished()
        if finished is None:
            return self._certified(inputs, missing)
        keys = sample_digests(inputs, (self.of_all, missing))
        new = [row for row, key in enumerate(keys) if key not in finished]
        if new:
            certificate = self._certified(select(inputs, torch.tensor(new)), missing)
            finished.add([keys[row] for row in new], certificate)
        device = next(iter(inputs.values())).device
        whole = joined([finished[key] for key in keys])
        return whole.to(device) if widest(device) is torch.float64 else whole

    def _certified(self, inputs: dict[str, Tensor], missing: str) -> SmoothedCertificate:
        module = self.model.module
        smoothed = self.settings.smoothed(
            module if isinstance(module, CRMTMixin) else self.model, max_draws=BLOCK if self.trial else None
        )
        radii, budgets = self.settings.radii, self.settings.budgets
        if self.mean_radii:
            return smoothed.certify(inputs, missing=[missing] if missing else [])
        if missing:
            return smoothed.certify(inputs, radii=radii, missing=[missing])
        return smoothed.certify(inputs, radii=radii, budgets=budgets)

    def _finished(self) -> FinishedCertificates | None:
        if self.settings.folder is None or self.trial:
            return None
        if self.finished is None:
            module = self.model.module
            self.finished = FinishedCertificates(self.settings.folder, str(module.global_rank))
            named = ("sigma", "at", "alpha", "max_draws", "seed", "radii", "budgets")
            asked = {name: getattr(self.settings, name) for name in named}
            self.of_all = repr((__version__, fingerprint(module), module.device.type, asked))
        return self.finished

    def _portions(self, samples: int) -> list[Tensor]:
        """Rows in portions that fill a forward pass with the first draws, unless that makes more than there are parts.

        The same for the same batch: what is finished and what is not comes in the same portions when it goes on.
        """
        fill = -(-samples // max(1, self.settings.batch_size // BLOCK))
        return list(torch.arange(samples).tensor_split(min(self.settings.parts, fill)))

    def _told(self, portions: int, of: int) -> int:
        """How many parts have been told of after some of the portions, the last part never."""
        return min(portions * self.settings.parts // of, self.settings.parts - 1)

    @override
    def compute(self, reduce: Reduce) -> dict[Key, float]:
        numbers = super().compute(reduce)
        for key, counts in list(self.means.counts.items()):
            if key.what.startswith("smoothed_abstained"):
                when = key.what.removeprefix("smoothed_abstained")
                numbers[Key("", f"smoothed_expected_wrong{when}", key.of)] = self.settings.alpha * counts[0]
                numbers[Key("", f"smoothed_samples{when}", key.of)] = float(counts[0])
        return numbers
