# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""CRMT as methods for a LightningModule of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_crmt.certification import Certificate, certify_late_fusion
from lightning_crmt.checks import check_inputs, check_logits, check_same_modalities, check_target, describe
from lightning_crmt.fusion import FusionHead
from lightning_crmt.lipschitz import BOUND_LEVELS, LipschitzConstants
from lightning_crmt.losses import margin_regularization
from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import MixedTarget, Target, mixed_loss, size_of


class TrainingMethod(Protocol):
    """What a method of training may do in a step; see :class:`~lightning_crmt.methods.Method`."""

    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        """Other inputs and targets to train on."""

    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor | None:
        """What is added to the loss."""


class StageObjective(NamedTuple):
    """A loss that a callback puts in the place of step 1's.

    Attributes:
        name: what it is logged under.
        loss: from output and target, which is of mixed samples only if ``with_methods``.
        with_methods: whether methods of training still change the batch and add their terms; in step 2 they do not.
    """

    name: str
    loss: Callable[[FusionOutput, Any], Tensor]
    with_methods: bool = False


class CRMTMixin:
    """Methods that make a LightningModule a CRMT classifier; put it before your own class.

    The module must have three attributes: ``encoders``, a mapping of modality names to modules that give ``(B, d_m)``
    features; ``head``, a fusion head on these features; and ``rho``, the weight of the margin regularisation, by
    default 0.5. The mixin brings ``forward``, ``training_step``, ``validation_step``, ``test_step`` and
    ``predict_step``, and replaces those of the classes behind it; everything else of yours stays.

    Override ``split_batch`` for batches that are not ``(inputs, target)``. If you write a ``training_step`` in the
    class that has the mixin, begin with ``inputs, target = self.training_batch(batch)`` and return
    ``self.crmt_loss(self(inputs), target)``, alone or among other terms.

    >>> import torch
    >>> from lightning.pytorch import LightningModule
    >>> from lightning_crmt.encoders import MLP
    >>> from lightning_crmt.fusion import OrthogonalFusion
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
    head: FusionHead
    rho: float = 0.5

    #: What ``crmt_loss`` answers instead of step 1's loss while a callback has the module in another stage.
    stage_objective: StageObjective | None = None
    #: Methods of training that callbacks have put under this module, in their order.
    methods: Sequence[TrainingMethod] = ()
    #: Whether a training step has asked for the batch of the methods.
    training_batch_called: bool = False
    #: Whether a training step has asked for the loss in this stage.
    crmt_loss_called: bool = False

    # What a LightningModule brings.
    log: Callable[..., None]
    log_dict: Callable[..., None]
    __call__: Callable[..., FusionOutput]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checks the order of the bases."""
        super().__init_subclass__(**kwargs)
        bases = cls.__mro__
        if LightningModule in bases and bases.index(LightningModule) < bases.index(CRMTMixin):
            raise TypeError(f"{cls.__name__} must have CRMTMixin before LightningModule among its bases")

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

    def training_batch(self, batch: Any) -> tuple[Inputs, Target]:
        """``split_batch``, and what the methods of training make of it: adversarial inputs, mixtures of samples."""
        self.training_batch_called = True
        inputs, target = self.split_batch(batch)
        transformed: tuple[Inputs, Target] = inputs, target
        for method in self.active_methods():
            transformed = method.transform(self, *transformed)
        return transformed

    def active_methods(self) -> Sequence[TrainingMethod]:
        """The methods of training that take part in the current stage."""
        return self.methods if self.stage_objective is None or self.stage_objective.with_methods else ()

    def crmt_loss(self, output: FusionOutput, target: Target) -> Tensor:
        r"""The loss of the current stage.

        Step 1: cross-entropy plus ``rho`` times the margin regularisation,
        :math:`\mathrm{CE}(h, y) + \rho L_1`, and the terms of the methods. Step 2, while ``IntegrationReweighting`` has
        the module: its objective.

        Raises:
            ValueError: if logits are not finite, or a class is out of range.
        """
        self.crmt_loss_called = True
        check_logits(output.logits)
        for classes in target[:2] if isinstance(target, MixedTarget) else [target]:
            check_target(classes, self.head.num_classes, output.logits.shape[0])
        if self.stage_objective is not None:
            loss = self.stage_objective.loss(output, target)
        else:
            loss = mixed_loss(lambda y: nn.functional.cross_entropy(output.logits, y), target)
            if self.rho > 0:
                loss = loss + self.rho * margin_regularization(output.scores, target)
        terms = [method.term(self, output, target) for method in self.active_methods()]
        return sum((term for term in terms if term is not None), start=loss)

    def certify(
        self, inputs: Inputs, lipschitz: LipschitzConstants | None = None, *, level: Soundness | str = Soundness.SOUND
    ) -> Certificate:
        """Certificate of the predictions for ``inputs``, in evaluation mode and full precision.

        Args:
            inputs: one batch by modality.
            lipschitz: constants of these very weights; with estimated ones the radii are estimates. By default bounds
                of the encoders are computed.
            level: ``"rigorous"`` counts rounding too, see
                :func:`~lightning_crmt.certification.certify_late_fusion`, also for what it raises.

        >>> import torch
        >>> from lightning_crmt import CRMTModule
        >>> from lightning_crmt.encoders import MLP
        >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10)
        >>> model.certify({"audio": torch.randn(2, 20), "image": torch.randn(2, 30)}).soundness.label
        'certified'
        """
        assert isinstance(self, nn.Module)
        level = Soundness.among(BOUND_LEVELS, "level", level)
        hooked = self._forward_hooks or self._forward_pre_hooks
        changed = hooked or getattr(self.forward, "__func__", None) is not CRMTMixin.forward
        if changed and (lipschitz is None or level is Soundness.RIGOROUS):
            raise ValueError(
                "`lipschitz` must be given, and `level` be 'sound', where `forward` is overridden or has hooks: bounds "
                "of the encoders say nothing about what else it does"
            )
        return certify_late_fusion(self, inputs, lipschitz, level=level)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch; logs ``train/loss``, or under the name of a stage's own objective."""
        inputs, target = self.training_batch(batch)
        loss = self.crmt_loss(self(inputs), target)
        name = "loss" if self.stage_objective is None else self.stage_objective.name
        self.log(f"train/{name}", loss, batch_size=size_of(target))
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
        assert isinstance(self, nn.Module)
        known = set(self.parameters())
        if not all(parameter in known for encoder in encoders.values() for parameter in encoder.parameters()):
            raise TypeError(
                "`encoders` must be an nn.ModuleDict: the parameters of a plain dict are not the module's, so that "
                "neither optimizers nor checkpoints know them"
            )
        if not isinstance(head, FusionHead):
            raise TypeError(f"`head` must be a fusion head such as OrthogonalFusion, got {describe(head)}")
        check_same_modalities("encoders", encoders.keys(), head.in_features)
        if not self.rho >= 0:
            raise ValueError(f"`rho` must be at least 0, got {self.rho}")

    def on_fit_start(self) -> None:
        """Checks the parts."""
        super().on_fit_start()  # type: ignore[misc]
        self.check_parts()
        self.crmt_loss_called = self.training_batch_called = False

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
