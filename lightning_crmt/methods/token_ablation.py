# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train on texts of which most tokens are masked."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from lightning_crmt.checks import is_integer
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs, modalities_of
from lightning_crmt.smoothing import Ablation, counted_tokens
from lightning_crmt.targets import Target
from lightning_crmt.training import Method


class TokenAblation(Method):
    """Tokens masked at random in every batch: what a classifier needs that is to be smoothed by an ``Ablation``.

    Of the tokens of a sample a share stays, chosen anew in every batch; the others become the mask token (Levine and
    Feizi, AAAI 2020). Padding stays as it is. Beside it ``GaussianNoise`` adds noise to modalities of real numbers.

    Args:
        keep: the share of tokens that stays, above 0 and at most 1, as in :class:`~lightning_crmt.Ablation`.
        mask_token: the token that the others become.
        modalities: names of those whose tokens are masked; by default all of integers, if there are any.

    Raises:
        ValueError: if a setting is out of range; before training, if a modality is none of the module.
        TypeError: in training, if a modality that was named does not hold integers.

    >>> import torch
    >>> method = TokenAblation(keep=0.25, mask_token=0)  # Trainer(callbacks=[method]) trains with it
    >>> masked, _ = method.transform(None, {"text": torch.tensor([[5, 6, 7, 8]])}, torch.zeros(1))
    >>> (masked["text"] == 0).sum()
    tensor(3)
    """

    source = "recalled"

    def __init__(self, keep: float, mask_token: int, *, modalities: Sequence[str] | None = None) -> None:
        self.ablation = Ablation(keep, mask_token)
        if isinstance(modalities, str) or (modalities is not None and not modalities):
            raise ValueError(f"`modalities` must be a list of at least one name, got {modalities!r}")
        self.modalities = None if modalities is None else list(modalities)

    @override
    def begin(self, module: CRMTMixin) -> None:
        names = list(module.encoders.keys())
        if unknown := [name for name in self.modalities or [] if name not in names]:
            raise ValueError(f"`modalities` must be among {names}, got {unknown}")

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        names = self.modalities or [name for name, value in modalities_of(inputs).items() if is_integer(value)]
        masked = {name: self.ablation.apply(inputs[name], counted_tokens(name, inputs)) for name in names}
        return {**inputs, **masked}, target
