# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A head that first pulls features towards those of training samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_same_modalities, describe
from lightning_crmt.fusion.head import FusionHead
from lightning_crmt.fusion.late import LinearFusion
from lightning_crmt.modality import FusionOutput, Inputs, answer, at_least_single


class MemoryFusion(FusionHead):
    r"""External feature memory (ExFMem of Tian and Xu, CVPR 2021, arXiv 2104.02000) before another head.

    .. math:: z^m \leftarrow a D^m c^m + (1 - a) z^m, \qquad
        c^m = \arg\min_c \tfrac 1 2 \lVert z^m - D^m c \rVert^2 + \lambda \lVert c \rVert_1

    with features :math:`z^m`, ``(B, d_m)``, and dictionaries :math:`D^m` of features of clean training samples, which
    :class:`~lightning_crmt.methods.FeatureMemory` fills in a fit. They are buffers, so a checkpoint holds them. Until
    they are filled, this head does what the inner one does. Codes are computed by
    :func:`~lightning_crmt.fusion.memory.sparse_codes`, whose step size follows from the dictionary where the
    paper sets one by hand.

    The gradient passes through the memory, so that attacks see the defence they are up against. No Lipschitz bound is
    known for the memory, so nothing can be certified for this head.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name.
        num_classes: number of classes K, at least 2.
        head: makes the inner head.
        atoms: features in each dictionary, at least 1.
        blend: a in [0, 1]; the paper has 0.5 and 0.6.
        penalty: :math:`\lambda`, at least 0.
        steps: most iterations for a code, at least 1.
        tolerance: at least 0, see ``sparse_codes``.

    Raises:
        ValueError: if an argument is out of range; in ``forward``, if features have another shape than ``(B, d_m)``.

    >>> head = MemoryFusion({"audio": 16, "image": 32}, num_classes=10, atoms=64)
    >>> head.fill({"audio": torch.randn(64, 16), "image": torch.randn(64, 32)})
    >>> head({"audio": torch.randn(4, 16), "image": torch.randn(4, 32)}).logits.shape
    torch.Size([4, 10])
    """

    filled: Tensor

    def __init__(
        self,
        in_features: Mapping[str, int],
        num_classes: int,
        head: Callable[[Mapping[str, int], int], FusionHead] = LinearFusion,
        atoms: int = 128,
        blend: float = 0.5,
        penalty: float = 0.1,
        steps: int = 2000,
        tolerance: float = 8e-4,
    ) -> None:
        super().__init__(in_features, num_classes)
        check_at_least(1, atoms=atoms, steps=steps)
        check_at_least(0, penalty=penalty, tolerance=tolerance)
        if not 0 <= blend <= 1:
            raise ValueError(f"`blend` must be in [0, 1], got {blend}")
        self.head = head(in_features, num_classes)
        self.atoms = atoms
        self.blend = blend
        self.penalty = penalty
        self.steps = steps
        self.tolerance = tolerance
        for name, size in in_features.items():
            self.register_buffer(f"dictionary_{name}", torch.zeros(atoms, size))
        self.register_buffer("filled", torch.tensor(False))

    @property
    def dictionaries(self) -> dict[str, Tensor]:
        """Features of training samples, each ``(A, d_m)``; rows of zeros where there were fewer."""
        return {name: self.get_buffer(f"dictionary_{name}") for name in self.in_features}

    def fill(self, features: Inputs) -> None:
        """Store features of training samples in the dictionaries, at most ``atoms`` for each modality.

        Raises:
            ValueError: if modalities or shapes do not fit the head, or there are too many samples.
        """
        check_same_modalities("features", features, self.in_features)
        for name, dictionary in self.dictionaries.items():
            value = features[name]
            if value.dim() != 2 or value.shape[1] != dictionary.shape[1] or len(value) > self.atoms:
                raise ValueError(
                    f"`features[{name!r}]` must have shape (A, {dictionary.shape[1]}) with A at most {self.atoms}, "
                    f"got {describe(value)}"
                )
            dictionary.zero_()
            dictionary[: len(value)] = value.detach()
        self.filled.fill_(True)

    @override
    def forward(self, features: Inputs, present: Inputs | None = None) -> FusionOutput:
        features = self.checked(features)
        if torch.compiler.is_exporting():
            raise TypeError(
                "`head` must not be a MemoryFusion to be exported: its codes take as many steps as their values need"
            )
        filled = bool(self.filled)
        recalled = {n: self._recall(n, value) for n, value in features.items()} if filled else features
        return answer(self.head, recalled, present or {})._replace(features=features)

    @override
    def unimodal_logits(self, scores: Inputs) -> dict[str, Tensor]:
        """Those of the inner head."""
        return self.head.unimodal_logits(scores)

    @override
    def integration_parameters(self) -> list[nn.Parameter]:
        return self.head.integration_parameters()

    def _recall(self, name: str, features: Tensor) -> Tensor:
        # Many small steps add up: half precision has no room for them.
        with torch.autocast(features.device.type, enabled=False):
            single = at_least_single(features)
            atoms = self.get_buffer(f"dictionary_{name}").to(single)
            recalled = reconstruction(single, atoms, self.penalty, self.steps, self.tolerance)
            return (self.blend * recalled + (1 - self.blend) * single).to(features.dtype)


def sparse_codes(features: Tensor, atoms: Tensor, penalty: float, steps: int = 2000, tolerance: float = 8e-4) -> Tensor:
    r"""Codes of least penalised error, by iterative shrinkage and thresholding (Beck and Teboulle, SIAM J. IS 2009).

    .. math:: c_i = \arg\min_c \tfrac 1 2 \lVert z_i - D c \rVert^2 + \lambda \lVert c \rVert_1

    with step size 1 over the largest eigenvalue of :math:`D^\top D`, so that no step increases the error.

    Args:
        features: :math:`z_i`, ``(B, d)``.
        atoms: columns of D as rows, ``(A, d)``.
        penalty: :math:`\lambda`, at least 0.
        steps: the most iterations.
        tolerance: stop when no sample's code changes by more than this share of its norm.

    Returns:
        Codes, ``(B, A)``, without a graph.

    >>> codes = sparse_codes(torch.tensor([[3.0, -0.5]]), torch.eye(2), penalty=1.0)  # shrinks towards 0
    >>> codes
    tensor([[2., -0.]])
    """
    with torch.no_grad():
        gram, cross = atoms @ atoms.mT, features @ atoms.mT
        largest = torch.linalg.eigvalsh(gram)[-1].clamp(min=torch.finfo(gram.dtype).tiny)
        threshold = penalty / largest
        codes = torch.zeros_like(cross)
        for step in range(steps):
            moved = codes + (cross - codes @ gram) / largest
            last, codes = codes, moved.sign() * (moved.abs() - threshold).clamp(min=0)
            # Checking costs a synchronisation with the device.
            if step % 10 == 9 and bool(((codes - last).norm(dim=1) <= tolerance * codes.norm(dim=1)).all()):
                break
    return codes


def reconstruction(
    features: Tensor, atoms: Tensor, penalty: float, steps: int = 2000, tolerance: float = 8e-4
) -> Tensor:
    r"""Reconstruction of features by the dictionary, :math:`D c(z)`, ``(B, d)``, with its own gradient.

    While the same atoms are active, :math:`D c(z)` moves with the projection of z onto them. That projection is the
    gradient given here, in place of one through all iterations, or of none: an attack without a gradient through a
    defence makes it look stronger than it is.

    Args:
        features: z, ``(B, d)``.
        atoms: ``(A, d)``.
        penalty, steps, tolerance: see :func:`sparse_codes`.

    >>> z = torch.tensor([[3.0, -0.5]], requires_grad=True)
    >>> reconstruction(z, torch.eye(2), penalty=1.0).sum().backward()
    >>> z.grad.round(decimals=3)
    tensor([[1., 0.]])
    """
    codes = sparse_codes(features, atoms, penalty, steps, tolerance)
    value = codes @ atoms
    if not (torch.is_grad_enabled() and features.requires_grad):
        return value
    with torch.no_grad():
        active = codes != 0
        gram = atoms @ atoms.mT
        # One system per sample; rows of atoms that are not active are those of the identity.
        system = torch.where(active[:, :, None] & active[:, None, :], gram, 0.0)
        # Atoms may repeat, or outnumber the dimensions: a little weight on the diagonal keeps the system solvable.
        ridge = 1e-6 * gram.diagonal().amax().clamp(min=torch.finfo(gram.dtype).tiny)
        system = system + torch.diag_embed(torch.where(active, ridge, 1.0))
    projected = torch.linalg.solve(system, ((features @ atoms.mT) * active)[:, :, None])[:, :, 0] @ atoms
    moving: Tensor = projected - projected.detach()
    return value + moving
