# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""CRMT as a LightningModule: to subclass, to instantiate, or to mix into a module of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_crmt.certification import Certificate, certify_late_fusion
from lightning_crmt.fusion import Fusion, OrthogonalFusion
from lightning_crmt.lipschitz import LipschitzConstants
from lightning_crmt.lipschitz.bound import Level
from lightning_crmt.losses import margin_regularization
from lightning_crmt.modality import (
    FusionOutput,
    Inputs,
    check_inputs,
    check_logits,
    check_modality_names,
    check_same_modalities,
    check_target,
    describe,
)


class StageObjective(NamedTuple):
    """A loss that a callback puts in the place of step 1's, with the name it is logged under."""

    name: str
    loss: Callable[[FusionOutput, Tensor], Tensor]


class CRMTMixin:
    """Methods that make a LightningModule a CRMT classifier; put it before your own class.

    The module must have three attributes: ``encoders``, a mapping of modality names to modules that give ``(B, d_m)``
    features; ``head``, a fusion head on these features; and ``rho``, the weight of the margin regularisation, by
    default 0.5. The mixin brings ``forward``, ``training_step``, ``validation_step``, ``test_step`` and
    ``predict_step``, and replaces those of the classes behind it; everything else of yours stays.

    Override ``split_batch`` for batches that are not ``(inputs, target)``. If you write a ``training_step`` in the
    class that has the mixin, return ``self.crmt_loss(self(inputs), target)``, alone or among other terms.

    >>> from lightning_crmt.encoders import MLP
    >>> class Mine(CRMTMixin, LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.encoders = nn.ModuleDict({"audio": MLP(20, 16), "image": MLP(30, 16)})
    ...         self.head = OrthogonalFusion({"audio": 16, "image": 16}, num_classes=10)
    ...         self.rho = 0.5
    >>> Mine()({"audio": torch.zeros(2, 20), "image": torch.zeros(2, 30)}).logits.shape
    torch.Size([2, 10])
    """

    encoders: Mapping[str, nn.Module] | nn.ModuleDict
    head: Fusion
    rho: float = 0.5

    #: What ``crmt_loss`` answers instead of step 1's loss while a callback has the module in another stage.
    stage_objective: StageObjective | None = None
    #: Whether a training step has asked for the loss in this stage.
    crmt_loss_called: bool = False

    # What a LightningModule brings.
    log: Callable[..., None]
    log_dict: Callable[..., None]
    __call__: Callable[..., FusionOutput]

    def forward(self, inputs: Inputs) -> FusionOutput:
        """Logits and uni-modal scores of a batch.

        Raises:
            ValueError, TypeError: naming the modality, for inputs that are missing, unknown, ragged, NaN or Inf.
        """
        check_inputs(inputs, self.encoders.keys())
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})  # type: ignore[no-any-return]

    def split_batch(self, batch: Any) -> tuple[Inputs, Tensor]:
        """``(inputs, target)`` of a batch as the data loader gives it; the one place to override for another form."""
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Mapping):
            raise TypeError(
                f"a batch must be (inputs, target) with inputs by modality, got {describe(batch)}; "
                "override `split_batch` for another form"
            )
        return batch[0], batch[1]

    def crmt_loss(self, output: FusionOutput, target: Tensor) -> Tensor:
        r"""The loss of the current stage.

        Step 1: cross-entropy plus ``rho`` times the margin regularisation,
        :math:`\mathrm{CE}(h, y) + \rho L_1`. Step 2, while ``IntegrationReweighting`` has the module: its objective.

        Raises:
            ValueError: if logits are not finite, or a class is out of range.
        """
        self.crmt_loss_called = True
        check_logits(output.logits)
        check_target(target, self.head.num_classes, output.logits.shape[0])
        if self.stage_objective is not None:
            return self.stage_objective.loss(output, target)
        loss = nn.functional.cross_entropy(output.logits, target)
        if self.rho > 0:
            loss = loss + self.rho * margin_regularization(output.scores, target)
        return loss

    def certify(
        self, inputs: Inputs, lipschitz: LipschitzConstants | None = None, *, level: Level = "sound"
    ) -> Certificate:
        """Certificate of the predictions for ``inputs``, in evaluation mode and full precision.

        Args:
            inputs: one batch by modality.
            lipschitz: constants of these very weights; with estimated ones the radii are estimates. By default bounds
                of the encoders are computed.
            level: ``"rigorous"`` counts rounding too, see
                :func:`~lightning_crmt.certification.certify_late_fusion`, also for what it raises.

        >>> from lightning_crmt.encoders import MLP
        >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10)
        >>> model.certify({"audio": torch.randn(2, 20), "image": torch.randn(2, 30)}).soundness.label
        'certified'
        """
        assert isinstance(self, nn.Module)
        hooked = self._forward_hooks or self._forward_pre_hooks
        changed = hooked or getattr(self.forward, "__func__", None) is not CRMTMixin.forward
        if changed and (lipschitz is None or level == "rigorous"):
            raise ValueError(
                "`lipschitz` must be given, and `level` be 'sound', where `forward` is overridden or has hooks: bounds "
                "of the encoders say nothing about what else it does"
            )
        return certify_late_fusion(self, inputs, lipschitz, level=level)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch; logs ``train/loss``, or under the name of a stage's own objective."""
        inputs, target = self.split_batch(batch)
        loss = self.crmt_loss(self(inputs), target)
        name = "loss" if self.stage_objective is None else self.stage_objective.name
        self.log(f"train/{name}", loss, batch_size=len(target))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``val/loss``, ``val/accuracy/joint`` and the accuracy of each modality's own scores."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the same as validation under ``test/``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class probabilities ``(B, K)``; takes a batch with or without target."""
        inputs = batch if isinstance(batch, Mapping) else self.split_batch(batch)[0]
        return self(inputs).logits.softmax(dim=1)

    def check_parts(self) -> None:
        """Check that the module has what the mixin needs.

        Raises:
            TypeError: naming ``encoders`` or ``head``, if it is missing or of another kind.
            ValueError: if they do not have the same modalities, or ``rho`` is negative.
        """
        head, encoders = getattr(self, "head", None), getattr(self, "encoders", None)
        if not isinstance(encoders, Mapping | nn.ModuleDict):
            raise TypeError(f"`encoders` must map names of modalities to modules, got {describe(encoders)}")
        if not isinstance(head, Fusion):
            raise TypeError(f"`head` must be a fusion head such as OrthogonalFusion, got {describe(head)}")
        check_same_modalities("encoders", encoders.keys(), head.in_features)
        if not self.rho >= 0:
            raise ValueError(f"`rho` must be at least 0, got {self.rho}")

    def on_fit_start(self) -> None:
        """Checks the parts."""
        super().on_fit_start()  # type: ignore[misc]
        self.check_parts()
        self.crmt_loss_called = False

    def on_train_end(self) -> None:
        """Warns if nothing asked for the CRMT loss during the fit."""
        super().on_train_end()  # type: ignore[misc]
        if not self.crmt_loss_called:
            rank_zero_warn(
                "no training step called `crmt_loss`, so this was not CRMT: an overridden `training_step` must return "
                "`self.crmt_loss(self(inputs), target)`, alone or among other terms"
            )

    def _evaluate(self, batch: Any, split: str) -> None:
        inputs, target = self.split_batch(batch)
        output = self(inputs)
        check_target(target, self.head.num_classes, output.logits.shape[0])
        found = {f"{split}/loss": nn.functional.cross_entropy(output.logits, target)}
        for name, scores in {"joint": output.logits, **output.scores}.items():
            found[f"{split}/accuracy/{name}"] = (scores.argmax(dim=1) == target).float().mean()
        self.log_dict(found, batch_size=len(target), sync_dist=True)


class CRMTModule(CRMTMixin, LightningModule):
    """A multi-modal classifier trained by CRMT: one encoder per modality, late fusion, margin regularisation.

    Add the callback ``IntegrationReweighting`` for step 2. With ``head: LinearFusion`` and ``rho: 0`` it is ordinary
    joint training, the baseline; with ``OrthogonalFusion`` and ``rho: 0`` orthogonal joint training.

    Args:
        encoders: one module per modality, by name, that gives ``(B, d_m)`` features.
        num_classes: number of classes K.
        rho: weight of the margin regularisation, at least 0; 0 turns it off.
        head: makes the fusion head from the sizes of the features and the number of classes.
        in_features: size of each encoder's features; read off the encoder's ``out_features``, or that of the last
            module in a ``Sequential`` that has one, if not given.
        optimizer: makes the optimizer from two parameter groups named ``body`` and ``integration``.
        lr_scheduler: makes a learning rate scheduler, stepped every epoch, from the optimizer; one that watches a
            metric watches ``val/loss``.

    Raises:
        ValueError: if ``rho`` is negative, a size of features cannot be found, or the head cannot be built.

    >>> from lightning_crmt.encoders import MLP
    >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10, rho=0.5)
    >>> model({"audio": torch.zeros(2, 20), "image": torch.zeros(2, 30)}).scores["audio"].shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        rho: float = 0.5,
        head: Callable[[Mapping[str, int], int], Fusion] = OrthogonalFusion,
        in_features: Mapping[str, int] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoders, Mapping) or not all(isinstance(e, nn.Module) for e in encoders.values()):
            raise TypeError(f"`encoders` must map names of modalities to modules, got {describe(encoders)}")
        if not callable(head) or isinstance(head, nn.Module):
            raise TypeError(f"`head` must be a class of fusion heads or make one, got {describe(head)}")
        check_modality_names("encoders", encoders)
        if not rho >= 0:
            raise ValueError(f"`rho` must be at least 0, got {rho}")
        sizes = dict(in_features or {})
        for name, encoder in encoders.items():
            if name not in sizes:
                sizes[name] = _out_features(name, encoder)
        check_same_modalities("in_features", sizes, encoders)
        self.encoders = nn.ModuleDict(encoders)
        self.head = head({name: sizes[name] for name in encoders}, num_classes)
        self.rho = rho
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer with the groups ``body`` and ``integration``."""
        integration = self.head.integration_parameters()
        apart = {id(parameter) for parameter in integration}
        groups: list[dict[str, Any]] = [
            {"name": "body", "params": [p for p in self.parameters() if id(p) not in apart]},
            {"name": "integration", "params": integration},
        ]
        optimizer = self.make_optimizer([group for group in groups if group["params"]])
        if self.make_lr_scheduler is None:
            return optimizer
        # ``monitor`` is for schedulers that watch a metric; others ignore it.
        scheduler = {"scheduler": self.make_lr_scheduler(optimizer), "monitor": "val/loss"}
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": scheduler})


def _out_features(name: str, encoder: nn.Module) -> int:
    modules = reversed(list(encoder)) if isinstance(encoder, nn.Sequential) else [encoder]
    for module in modules:
        size = getattr(module, "out_features", None)
        if isinstance(size, int):
            return size
    raise ValueError(
        f"`in_features` must give the size of the features of {name!r}: its encoder, {describe(encoder)}, "
        f"has no `out_features`; pass in_features={{{name!r}: ...}}"
    )
