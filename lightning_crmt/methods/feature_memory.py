# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Fill the memory of a head with features of training samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import describe
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.fusion import MemoryFusion
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.training import Method, TrainingPass, crmt_module


class FeatureMemory(Method):
    r"""External feature memory (ExFMem of Tian and Xu, CVPR 2021, arXiv 2104.02000): fills a ``MemoryFusion`` head.

    .. math:: z^m \leftarrow a D^m c^m + (1 - a) z^m

    The head does this, in training and in evaluation; the callback chooses the dictionaries :math:`D^m`, ``(A, d_m)``:
    the features of A clean training samples, the same for all modalities, drawn without replacement. They are measured
    anew, in evaluation mode, before each epoch of training from ``start_epoch`` on and before each validation, so that
    a checkpoint holds those of the encoders it holds. Testing a checkpoint needs the head alone. When the paper
    measures its dictionaries was not found out. With :class:`MinimalSimilarity` it is the paper's whole defence.

    Args:
        start_epoch: first epoch that is trained with a memory, counted from 0; the encoders should know something by
            then.
        seed: decides which samples are drawn.
        dataloader: batches of clean samples to draw from; by default the training data set in order.

    Raises:
        ValueError: if an argument is negative.
        TypeError: on ``setup``, if the head is no ``MemoryFusion``.

    >>> from lightning_crmt.fusion import MemoryFusion
    >>> head, callback = MemoryFusion({"audio": 16, "image": 16}, num_classes=10), FeatureMemory(start_epoch=5)
    """

    def __init__(self, start_epoch: int = 1, seed: int = 0, dataloader: Iterable[Any] | None = None) -> None:
        for name, value in {"start_epoch": start_epoch, "seed": seed}.items():
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}")
        self.start_epoch = start_epoch
        self.seed = seed
        self.dataloader = dataloader
        self._filled_at: int | None = None  # number of optimizer steps

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        head = crmt_module(pl_module, self).head
        if stage == "fit" and not isinstance(head, MemoryFusion):
            raise TypeError(f"FeatureMemory fills the head MemoryFusion, got {describe(head)}")
        self._filled_at = None

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.start_epoch:
            self._fill(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The memory that the next epoch begins with, if there is one.
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and trainer.current_epoch + 1 >= self.start_epoch:
            self._fill(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.start_epoch:
            self._fill(trainer, pl_module)

    def _fill(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.active(pl_module) or self._filled_at == trainer.global_step:
            return
        module = crmt_module(pl_module, self)
        head = module.head
        assert isinstance(head, MemoryFusion)
        with isolate_rng():
            own = self._draw(trainer, module, len(range(trainer.global_rank, head.atoms, trainer.world_size)))
        found = {}
        for name, dictionary in head.dictionaries.items():
            # Each process has places of its own, so that the sum over all is what all have found.
            rows = torch.zeros_like(dictionary)
            rows[trainer.global_rank :: trainer.world_size][: len(own[name])] = own[name].to(rows)
            found[name] = trainer.strategy.reduce(rows, reduce_op="sum").to(rows)
        head.fill(found)
        self._filled_at = trainer.global_step

    def _draw(self, trainer: Trainer, module: CRMTMixin, count: int) -> dict[str, Tensor]:
        """Features of so many samples of this process, or of all if there are fewer."""
        assert isinstance(module, LightningModule)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + trainer.global_rank)
        keys = torch.empty(0)
        kept: dict[str, Tensor] = {}
        data = TrainingPass(trainer, self.dataloader)
        with frozen_eval(module), torch.no_grad():
            for batch in data.batches("Feature memory"):
                inputs, target = module.split_batch(batch)
                features = {name: encoder(inputs[name]) for name, encoder in module.encoders.items()}
                # Every sample draws a key, and the largest keys stay: a sample of all without knowing how many.
                keys = torch.cat([keys, torch.rand(len(target), generator=generator)])
                keys, order = keys.topk(min(count, len(keys)))
                for name, value in features.items():
                    pool = torch.cat([kept[name], value]) if name in kept else value
                    kept[name] = pool[order.to(pool.device)]
        if not kept:
            raise ValueError("FeatureMemory must see at least one training sample, got none")
        return kept
