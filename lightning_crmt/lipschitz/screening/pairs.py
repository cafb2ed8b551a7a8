# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Exact gradient norms for chosen pairs of a sample and a class, in few passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_crmt.lipschitz.gradients import input_gradients
from lightning_crmt.modality import Inputs


def pair_norms(
    scores_of: Callable[[Inputs], Inputs], inputs: Inputs, pairs: Inputs, batch_size: int
) -> tuple[dict[str, Tensor], int]:
    """Norms of the gradients of chosen scores at chosen samples, and how many gradients were taken for them.

    A backward pass serves one class of every sample in it, each its own. A batch may combine the image of one sample
    with the sound of another, as no score depends on both.

    Args:
        scores_of: uni-modal scores ``(B, K)`` of inputs by name, each of its own input alone.
        inputs: of n samples, by name.
        pairs: which scores of which samples, ``(n, K)`` of bools by modality.
        batch_size: the most samples in a pass.

    Returns:
        ``(n, K)`` by modality, and a number. Norms of pairs that were not requested are 0, or exact where they cost
        nothing extra.

    >>> leaf = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> pairs = {"audio": torch.tensor([[True, False], [True, True]])}
    >>> norms, taken = pair_norms(lambda inputs: {"audio": inputs["audio"].square()}, {"audio": leaf}, pairs, 2)
    >>> norms["audio"][pairs["audio"]]
    tensor([2., 6., 8.])
    """
    left = {name: mask.to(torch.uint8, copy=True) for name, mask in pairs.items()}
    norms = {name: torch.zeros_like(mask, dtype=inputs[name].dtype) for name, mask in left.items()}
    taken = 0
    while True:
        counts = {name: mask.sum(dim=1) for name, mask in left.items()}
        size = min(batch_size, max(int((count > 0).sum()) for count in counts.values()))
        if size == 0:
            return norms, taken
        # The samples with most to do, together as long as it pays.
        rows = {name: count.argsort(descending=True, stable=True)[:size] for name, count in counts.items()}
        turns = _best_turns(torch.cat([count[rows[name]] for name, count in counts.items()]))
        classes = {
            name: mask[rows[name]].argsort(dim=1, descending=True, stable=True)[:, :turns]
            for name, mask in left.items()
        }
        batch = {name: value[rows[name]] for name, value in inputs.items()}
        # A modality with nothing left to compute is carried along.
        leaves = {name: value.requires_grad_(True) for name, value in batch.items() if counts[name].any()}
        scores = scores_of(batch)
        for turn in range(turns):
            at = {name: classes[name][:, turn] for name in leaves}
            total = torch.stack([scores[name].gather(1, k[:, None]).sum() for name, k in at.items()]).sum()
            for name, gradient in input_gradients(total, leaves, last=turn == turns - 1).items():
                norms[name][rows[name], at[name]] = gradient.norm(dim=1)
        for name, mask in left.items():
            mask[rows[name][:, None], classes[name]] = 0
        taken += turns * size


def _best_turns(counts: Tensor) -> int:
    """How often to go backward for the most gradients wanted per pass; the forward pass costs about as much as one."""
    turns = torch.arange(1, int(counts.max()) + 1, device=counts.device)
    useful = torch.minimum(counts[:, None], turns).sum(dim=0)
    return 1 + int((useful / (1 + turns)).argmax())
