# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Random ablation of tokens: the noise of a modality that holds integers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_crmt.attacks import check_mask, free_entries
from lightning_crmt.checks import describe, is_integer
from lightning_crmt.modality import Inputs, modalities_of

#: What transformers calls the mask of tokens.
_MASK = "attention_mask"


@dataclass(frozen=True)
class Ablation:
    r"""Keeps some of the tokens of a sample, chosen at random, and puts a mask token in the place of the others.

    Of n tokens :math:`k = \lceil \mathrm{keep} \cdot n \rceil` stay, at least one. If somebody replaced r of the n,
    none of these is among those that stay with probability

    .. math:: q(r) = \binom{n - r}{k} \Big/ \binom{n}{k}

    and then nobody can tell what was replaced (Levine and Feizi, AAAI 2020; several modalities: MMCert, Wang et al.,
    CVPR 2024). Tokens that an attention mask excludes are neither counted nor changed, and nobody changes them: what is
    certified is about the replacement of tokens, not about longer or shorter texts.

    Args:
        keep: the share of tokens that stays, above 0 and at most 1.
        mask_token: the token that the others become, best one that the model was trained with in this role.

    Raises:
        ValueError: if ``keep`` is out of range, or ``mask_token`` negative.

    >>> ablation = Ablation(keep=0.5, mask_token=0)
    >>> ablation.untouched(torch.tensor([4]), changed=1)  # two of four tokens stay
    tensor([0.5000], dtype=torch.float64)
    """

    keep: float
    mask_token: int

    def __post_init__(self) -> None:
        if not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise ValueError(f"`keep` must be a share above 0 and at most 1, got {self.keep}")
        if not isinstance(self.mask_token, int) or isinstance(self.mask_token, bool) or self.mask_token < 0:
            raise ValueError(f"`mask_token` must be a token, an integer of at least 0, got {self.mask_token!r}")

    def kept(self, length: Tensor) -> Tensor:
        """How many of ``length`` tokens stay, of the same shape; 0 of none."""
        return (length.double() * self.keep - 1e-9).ceil().clamp(min=1).minimum(length.double()).long()

    def untouched(self, length: Tensor, changed: int | Tensor) -> Tensor:
        """The probability q that no changed token stays, in double precision.

        Args:
            length: tokens n of each sample, ``(B,)``.
            changed: how many of them were replaced, r, a number or ``(B,)``; more than n count as n.
        """
        n = length.double()
        k, r = self.kept(length).double(), torch.as_tensor(changed, dtype=torch.float64, device=length.device)
        r = torch.minimum(r.expand_as(n), n)

        def log_factorial(x: Tensor) -> Tensor:
            return torch.lgamma(x.clamp(min=0) + 1)

        log_q = log_factorial(n - r) - log_factorial(n - r - k) - log_factorial(n) + log_factorial(n - k)
        # Rounded down: a smaller probability certifies less.
        q = (log_q.exp() * (1 - 1e-9)).clamp(max=1)
        return torch.where(r == 0, 1.0, torch.where(n - r < k, 0.0, q))

    def apply(self, tokens: Tensor, counted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``tokens`` with all but k of those that count replaced by the mask token.

        Args:
            tokens: integers ``(B, ...)``.
            counted: which of them are tokens and not padding, bool of the same shape.
            generator: to draw from, on the device of the tokens; torch's global one by default.

        >>> tokens = torch.tensor([[5, 6, 7, 8, 9, 9]])
        >>> mixed = Ablation(0.5, mask_token=0).apply(tokens, torch.tensor([[True] * 4 + [False] * 2]))
        >>> (mixed[0, :4] == 0).sum(), mixed[0, 4:]
        (tensor(2), tensor([9, 9]))
        """
        if self.mask_token > torch.iinfo(tokens.dtype).max:
            raise ValueError(
                f"`mask_token` must be a number of {tokens.dtype}, as the tokens are, got {self.mask_token}"
            )
        places = torch.rand(tokens.shape, generator=generator, device=tokens.device, dtype=torch.float64)
        flat, counted = places.flatten(1), counted.expand_as(tokens).flatten(1)
        rank = flat.masked_fill(~counted, math.inf).argsort(dim=1).argsort(dim=1)
        stays = rank < self.kept(counted.sum(dim=1))[:, None]
        return torch.where((stays | ~counted).reshape(tokens.shape), tokens, self.mask_token)


def counted_tokens(name: str, inputs: Inputs) -> Tensor:
    """Which tokens of a modality count, bool, in its shape: those that are no padding, of samples that have it.

    Raises:
        ValueError: if there is no such modality.
        TypeError: if it does not hold integers.

    >>> inputs = {"text": torch.tensor([[5, 2, 0]]), "text.attention_mask": torch.tensor([[1, 1, 0]])}
    >>> counted_tokens("text", inputs)
    tensor([[ True,  True, False]])
    """
    tokens = modalities_of(inputs).get(name)
    if tokens is None:
        raise ValueError(f"an Ablation must be of one of the modalities {list(modalities_of(inputs))}, got {name!r}")
    if not is_integer(tokens):
        raise TypeError(f"the Ablation of {name!r} is of tokens, which are integers, got {describe(tokens)}")
    check_mask(name, inputs, {})
    free = free_entries(name, inputs, {})
    whole = inputs.get(f".{_MASK}")
    alike = [other for other, value in modalities_of(inputs).items() if value.shape == tokens.shape]
    if whole is not None and whole.shape == tokens.shape and alike == [name]:  # that of the whole batch is its own
        free = (whole != 0) if free is None else free & (whole != 0)
    return (torch.ones_like(tokens, dtype=torch.bool) if free is None else free).expand_as(tokens)
