# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Finished certificates of single samples on disk, so that a long evaluation goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_crmt.modality import Inputs
from lightning_crmt.smoothing.ablation import Ablation
from lightning_crmt.smoothing.certificate import SmoothedCertificate


class FinishedCertificates:
    """Certificates of single samples by a key, in a folder: one line of JSON each, which is only ever appended.

    Every process writes a file of its own and reads those of all. A line that was cut off is passed over.

    Args:
        folder: is made, with folders on the way, when the first certificate is added.
        writer: a name for the file of this process.

    >>> import tempfile
    >>> one = SmoothedCertificate(
    ...     prediction=torch.tensor([2]), lower=torch.tensor([0.9]).double(), alpha=0.001, num_classes=3,
    ...     sigma={"audio": torch.tensor([0.5]).double()}, draws=torch.tensor([640]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     FinishedCertificates(folder, "0").add(["first"], one)
    ...     again = FinishedCertificates(folder, "1")
    ...     "first" in again, again["first"].lower == one.lower
    (True, tensor([True]))
    """

    def __init__(self, folder: str | Path, writer: str) -> None:
        self._file = Path(folder) / f"certificates-{writer}.jsonl"
        self._known: dict[str, SmoothedCertificate] = {}
        for file in sorted(Path(folder).glob("certificates-*.jsonl")):
            self._known |= dict(_read(file))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> SmoothedCertificate:
        """The certificate of one sample, on the CPU."""
        return self._known[key]

    def add(self, keys: Sequence[str], certificate: SmoothedCertificate) -> None:
        """Write the certificates of a batch, at once.

        Args:
            keys: one for each sample.
            certificate: of these samples.
        """
        apart = [_sample(certificate.to("cpu"), row) for row in range(len(keys))]
        self._known |= dict(zip(keys, apart, strict=True))
        lines = [json.dumps({"key": key} | _as_json(each)) for key, each in zip(keys, apart, strict=True)]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            # On a line of its own, also after one that was cut off.
            file.write("".join(f"\n{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def joined(certificates: Sequence[SmoothedCertificate]) -> SmoothedCertificate:
    """One certificate of the samples of several, which were made with the same settings.

    >>> parts = [
    ...     SmoothedCertificate(
    ...         prediction=torch.tensor([k]), lower=torch.tensor([0.9]).double(), alpha=0.001, num_classes=3,
    ...         sigma={"audio": torch.tensor([0.5]).double()}, draws=torch.tensor([640])) for k in range(3)]
    >>> joined(parts).prediction
    tensor([0, 1, 2])
    """
    first = certificates[0]
    return replace(
        first,
        prediction=torch.cat([each.prediction for each in certificates]),
        lower=torch.cat([each.lower for each in certificates]),
        draws=torch.cat([each.draws for each in certificates]),
        sigma={name: torch.cat([each.sigma[name] for each in certificates]) for name in first.sigma},
        lengths={name: torch.cat([each.lengths[name] for each in certificates]) for name in first.lengths},
    )


def fingerprint(module: nn.Module) -> str:
    """A digest of the weights and buffers of a module, of its parts as it prints them, and of its precision.

    >>> first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> fingerprint(first) == fingerprint(first), fingerprint(first) == fingerprint(second)
    (True, False)
    """
    digest = hashlib.blake2b(f"{type(module).__qualname__} {module!r}".encode(), digest_size=16)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"/{name}/".encode())
        digest.update(_content(value))
    return digest.hexdigest()


def sample_digests(inputs: Inputs, settings: object) -> list[str]:
    """A digest of each sample with all its context, and of settings that read the same when they are the same.

    >>> inputs = {"audio": torch.tensor([[1.0], [1.0], [1.0]]), "audio.present": torch.tensor([True, False, True])}
    >>> first, second, third = sample_digests(inputs, 0.5)
    >>> first == third, first == second, first == sample_digests(inputs, 0.6)[0]
    (True, False, False)
    """
    values = {name: value.detach().cpu() for name, value in sorted(inputs.items())}
    digests = []
    for row in range(len(next(iter(values.values())))):
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        for name, value in values.items():
            digest.update(f"/{name}/".encode())
            digest.update(_content(value[row]))
        digests.append(digest.hexdigest())
    return digests


def _content(value: Tensor) -> bytes:
    value = value.detach().cpu()
    shape = f"{value.dtype}{tuple(value.shape)}".encode()
    return shape + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sample(certificate: SmoothedCertificate, row: int) -> SmoothedCertificate:
    only = slice(row, row + 1)
    return replace(
        certificate,
        prediction=certificate.prediction[only],
        lower=certificate.lower[only],
        draws=certificate.draws[only],
        sigma={name: each[only] for name, each in certificate.sigma.items()},
        lengths={name: each[only] for name, each in certificate.lengths.items()},
    )


def _as_json(one: SmoothedCertificate) -> dict[str, Any]:
    """Floating point numbers are written so that they read back to the bit, infinite ones too."""
    return {
        "prediction": one.prediction.item(),
        "lower": one.lower.item(),
        "draws": one.draws.item(),
        "sigma": {name: each.item() for name, each in one.sigma.items()},
        "lengths": {name: each.item() for name, each in one.lengths.items()},
        "ablations": {name: [each.keep, each.mask_token] for name, each in one.ablations.items()},
        "alpha": one.alpha,
        "num_classes": one.num_classes,
        "missing": list(one.missing),
    }


def _read(file: Path) -> Iterator[tuple[str, SmoothedCertificate]]:
    for line in file.read_text().splitlines():
        try:
            held: Mapping[str, Any] = json.loads(line)
        except ValueError:
            continue  # empty, or cut off
        yield (
            held["key"],
            SmoothedCertificate(
                prediction=torch.tensor([held["prediction"]]),
                lower=torch.tensor([held["lower"]], dtype=torch.float64),
                draws=torch.tensor([held["draws"]]),
                sigma={name: torch.tensor([each], dtype=torch.float64) for name, each in held["sigma"].items()},
                lengths={name: torch.tensor([each]) for name, each in held["lengths"].items()},
                ablations={name: Ablation(*each) for name, each in held["ablations"].items()},
                alpha=held["alpha"],
                num_classes=held["num_classes"],
                missing=tuple(held["missing"]),
            ),
        )
