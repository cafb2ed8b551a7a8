# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Several inputs inside one vector per sample, for tools that know one tensor only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_crmt.checks import check_batch, describe
from lightning_crmt.modality import Inputs


class Flat:
    r"""Some modalities of a batch side by side in one vector per sample, ``(B, D)``, and the way back.

    The vector holds entries as they are, without a scale for each modality, so that the joint l2 norm of the
    modalities is the norm of the vector. :meth:`restore` undoes :meth:`join` bit by bit. The other modalities, such as
    token ids, are kept aside and come back untouched.

    Args:
        inputs: the batch: names, shapes, dtypes, and what is kept aside.
        modalities: those that go into the vector; all by default.

    Raises:
        ValueError: if a modality is unknown, or ``inputs`` is no batch.
        TypeError: if one that goes into the vector holds integers.

    >>> x = {"audio": torch.ones(2, 3), "text": torch.arange(2).reshape(2, 1), "image": torch.zeros(2, 2, 2)}
    >>> flat = Flat(x, ["audio", "image"])
    >>> flat.join(x)
    tensor([[1., 1., 1., 0., 0., 0., 0.],
            [1., 1., 1., 0., 0., 0., 0.]])
    >>> back = flat.restore(flat.join(x))
    >>> list(back), all(back[name].equal(x[name]) for name in x)
    (['audio', 'text', 'image'], True)
    """

    def __init__(self, inputs: Inputs, modalities: Sequence[str] | None = None) -> None:
        self.batch_size = check_batch("inputs", inputs)
        self.modalities = list(inputs) if modalities is None else list(modalities)
        unknown = [name for name in self.modalities if name not in inputs]
        if unknown or not self.modalities:
            raise ValueError(f"`modalities` must be some of {list(inputs)}, got {self.modalities}")
        for name in self.modalities:
            if not inputs[name].is_floating_point():
                raise TypeError(f"`inputs[{name!r}]` must be floating point to be flattened, got {inputs[name].dtype}")
        self._inputs = {name: value.detach() for name, value in inputs.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of entries of each modality in the vector, in its order."""
        return {name: self._inputs[name][0].numel() for name in self.modalities}

    def join(self, values: Inputs) -> Tensor:
        """The vectors ``(n, D)`` of values by modality ``(n, ...)``, in the narrowest dtype that holds them all."""
        for name, size in self.sizes.items():
            if values[name][0].numel() != size:
                raise ValueError(f"`values[{name!r}]` must have {size} entries a sample, got {describe(values[name])}")
        dtype = values[self.modalities[0]].dtype
        for name in self.modalities:
            dtype = torch.promote_types(dtype, values[name].dtype)
        return torch.cat([values[name].flatten(1).to(dtype) for name in self.modalities], dim=1)

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """Views of the vectors ``(n, D)`` by modality, each ``(n, ...)``, in the dtype of the vectors."""
        total = sum(self.sizes.values())
        if vectors.dim() != 2 or vectors.shape[1] != total:
            raise ValueError(f"`vectors` must have shape (n, {total}), got {describe(vectors)}")
        parts = torch.split(vectors, list(self.sizes.values()), dim=1)
        shapes = {name: self._inputs[name].shape[1:] for name in self.modalities}
        return {n: part.reshape(len(part), *shapes[n]) for n, part in zip(self.modalities, parts, strict=True)}

    def restore(self, vectors: Tensor, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Inputs of the model: the vectors in shape and dtype of each modality, and what was kept aside.

        Args:
            vectors: ``(n, D)``.
            rows: which samples of the batch these are, ``(n,)``; all in order by default.
        """
        if rows is None and len(vectors) != self.batch_size:
            raise ValueError(f"`vectors` must be {self.batch_size}, or `rows` must say which, got {len(vectors)}")
        parts = {name: part.to(self._inputs[name].dtype) for name, part in self.split(vectors).items()}
        chosen = {n: v if rows is None or n in parts else v[rows] for n, v in self._inputs.items()}
        return {name: parts.get(name, value) for name, value in chosen.items()}
