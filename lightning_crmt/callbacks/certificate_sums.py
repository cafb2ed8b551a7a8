# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What is added up of certificates of any kind: radii, accuracy at radii and budgets, by modality and by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.callbacks.observer import Measurement
from lightning_crmt.evaluation import Key, Means, Reduce, check_key_name
from lightning_crmt.metrics import credited_label_radii, credited_radius
from lightning_crmt.smoothing import AnyCertificate
from lightning_crmt.targets import has_labels

#: The most classes that get a key each; with more, only the worst class does.
_MOST_CLASSES = 32


class CertificateSums(Measurement):
    """Sums over certificates of an evaluation, sound, estimated or smoothed, whose keys say which.

    Args:
        radii: l2 radii at which accuracy is asked for.
        budgets: radii of several modalities at once, by name.
        names: of all modalities.
        mean_radii: whether the radius is that of the sample, and not only enough for the radii that were asked for.
    """

    def __init__(
        self,
        radii: Sequence[float],
        budgets: Sequence[Mapping[str, float]],
        names: Sequence[str],
        *,
        mean_radii: bool = True,
    ) -> None:
        super().__init__()
        self.radii, self.budgets, self.names, self.mean_radii = radii, budgets, names, mean_radii
        self.by_class = Means[Key]()
        self._keys: dict[tuple[str, ...], list[Key]] = {}

    def add_certificate(
        self, certificate: AnyCertificate, target: Tensor, present: Mapping[str, Tensor], perturbed: Sequence[str]
    ) -> None:
        """Add the certificate of a batch.

        Args:
            certificate: of the batch.
            target: what is right, classes ``(B,)`` or labels ``(B, K)``, on the device of the certificate.
            present: which samples have each modality, ``(B,)`` bool; left out, all have it.
            perturbed: the modalities that radii are about, which may be none where there are budgets alone.
        """
        labels = has_labels(target)
        right = certificate.prediction == target
        right = right.all(dim=1) if labels else right
        for budget in self.budgets:
            key = Key("", "accuracy", budget=tuple(budget.items()), sure=certificate.soundness.label)
            self.means.add({key: right & certificate.tolerates(budget)})
        if not perturbed:
            return
        together = "joint" if len(perturbed) == len(self.names) else "+".join(perturbed)
        radius = credited_radius(certificate, target, perturbed)
        accuracy = self._accuracy(certificate, radius, together)
        if labels:
            hits = self._label_accuracy(certificate, target, together, perturbed)
            self.by_class.add(hits, torch.ones_like(target))
            accuracy |= {key: each.float().mean(dim=1) for key, each in hits.items()}
        else:
            classes = torch.arange(certificate.num_classes, device=target.device)
            self.by_class.add(accuracy, target[:, None] == classes)
        self.means.add(accuracy)
        self._add_radius(certificate, radius, together, _have_any(target, present, perturbed))
        for name in perturbed:
            if name != together:
                radius, here = credited_radius(certificate, target, [name]), _have_any(target, present, [name])
                own = self._accuracy(certificate, radius, name)
                hits = self._label_accuracy(certificate, target, name, [name]) if labels else {}
                own |= {key: each.float().mean(dim=1) for key, each in hits.items()}
                self.means.add(own, here)
                self._add_radius(certificate, radius, name, here)

    def add_dropped(
        self,
        certificate: AnyCertificate,
        target: Tensor,
        present: Mapping[str, Tensor],
        perturbed: Sequence[str],
        name: str,
    ) -> None:
        """Add a certificate for the case that a modality is missing, of the samples that have one of the others.

        Args:
            certificate: of the batch.
            target: what is right.
            present: see :meth:`add_certificate`.
            perturbed: the other modalities that radii are about.
            name: of the missing one.
        """
        radius, here = credited_radius(certificate, target, perturbed), _have_any(target, present, perturbed)
        self.means.add(self._accuracy(certificate, radius, name, when="_dropped"), here)
        self._add_radius(certificate, radius, name, here, when="_dropped")

    def _keys_at_radii(self, what: str, of: str, sure: str) -> list[Key]:
        if (what, of, sure) not in self._keys:
            self._keys[what, of, sure] = [Key("", what, of, r, sure=sure) for r in self.radii]
        return self._keys[what, of, sure]

    def _accuracy(self, certificate: AnyCertificate, radius: Tensor, of: str, when: str = "") -> dict[Key, Tensor]:
        """Which samples have a credited radius ``(B,)`` above each of those asked for, ``(B,)``."""
        keys = self._keys_at_radii(f"accuracy{when}", of, certificate.soundness.label)
        return {key: radius > r for key, r in zip(keys, self.radii, strict=True)}

    def _label_accuracy(
        self, certificate: AnyCertificate, target: Tensor, of: str, modalities: Sequence[str]
    ) -> dict[Key, Tensor]:
        """Which labels are right and have a radius above each of those asked for, ``(B, K)``."""
        radii = credited_label_radii(certificate, target, modalities)
        keys = self._keys_at_radii("label_accuracy", of, certificate.soundness.label)
        return {key: radii > r for key, r in zip(keys, self.radii, strict=True)}

    def _add_radius(self, certificate: AnyCertificate, radius: Tensor, of: str, here: Tensor, when: str = "") -> None:
        if self.mean_radii:
            # A radius is infinite where nothing could be perturbed: no part of a mean.
            self.means.add({Key("", f"radius{when}", of, sure=certificate.soundness.label): radius}, here)

    @override
    def compute(self, reduce: Reduce) -> dict[Key, float]:
        numbers = super().compute(reduce)
        for key, shares in self.by_class.compute(reduce).items() if self.by_class else ():
            present = {str(k): share for k, share in enumerate(shares) if not math.isnan(share)}
            sizes = {str(k): size for k, size in enumerate(self.by_class.counts[key])}
            # Of several worst classes the smallest one: it says least.
            worst = min(present, key=lambda k: (present[k], sizes[k]))
            self._add_class(numbers, replace(key, what=f"{key.what}_worst_class"), present[worst], sizes[worst])
            if len(shares) <= _MOST_CLASSES and key.of == "joint":  # its key has no place for what is perturbed
                for k, share in present.items():
                    self._add_class(numbers, replace(key, what=f"{key.what}_of_class", of=k), share, sizes[k])
        return numbers

    def _add_class(self, numbers: dict[Key, float], key: Key, share: float, size: int) -> None:
        numbers[key], self.means.counts[key] = share, [size]


def check_budgets(budgets: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """``budgets`` as a list, checked to be valid in keys.

    Raises:
        ValueError: if one is no mapping of names of modalities to radii of at least 0.
    """
    for budget in budgets:
        if not isinstance(budget, Mapping) or not budget or not all(0 <= r < math.inf for r in budget.values()):
            raise ValueError(f"`budgets` must map names of modalities to radii, at least 0, got {budget}")
        for name in budget:
            check_key_name("budgets", name, modality=True)
    return [dict(budget) for budget in budgets]


def check_known(model_names: Sequence[str], **named: Sequence[str]) -> None:
    """Refuse names of modalities that the model does not have, by the argument that gives them.

    Raises:
        ValueError: naming the argument.
    """
    for argument, names in named.items():
        if unknown := [name for name in names if name not in model_names]:
            raise ValueError(f"`{argument}` must name modalities among {list(model_names)}, got {unknown}")


def _have_any(target: Tensor, present: Mapping[str, Tensor], modalities: Sequence[str]) -> Tensor:
    """Which samples have at least one of some modalities, ``(B, 1)``: one group of samples."""
    everywhere = torch.ones(len(target), dtype=torch.bool, device=target.device)
    some = torch.stack([present.get(name, everywhere).to(target.device) for name in modalities]).any(dim=0)
    return some[:, None]
