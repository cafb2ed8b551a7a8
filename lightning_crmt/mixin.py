# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""CRMT as a mixin for a LightningModule of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from typing_extensions import Self, override

from lightning_crmt.certification import Certificate, Evaluation, certify_late_fusion
from lightning_crmt.checks import (
    check_at_least,
    check_inputs,
    check_logits,
    check_named_batch,
    check_same_modalities,
    describe,
    require_finite,
    usable,
)
from lightning_crmt.criterion import Criterion
from lightning_crmt.encoding import encoded
from lightning_crmt.evaluation import Key
from lightning_crmt.export import export_onnx, for_inference
from lightning_crmt.fusion import FusionHead
from lightning_crmt.lipschitz import LipschitzConstants, remember_code, replaced_calls
from lightning_crmt.losses import smooth_margins
from lightning_crmt.modality import (
    FusionOutput,
    Inputs,
    answer,
    flattened,
    mean_over,
    present_of,
    samples_of,
    select,
)
from lightning_crmt.random_state import random_state, set_random_state
from lightning_crmt.soundness import Soundness
from lightning_crmt.stage import Stage, StageObjective
from lightning_crmt.targets import Target, answers, parts_of, rows_of, size_of

#: Where a checkpoint holds the random states.
_RANDOM_STATE = "random_state"


class CRMTMixin(LightningModule):
    """Makes a LightningModule a CRMT classifier; put it before your own class.

    The module must have three attributes, from ``__init__`` or from ``configure_model``: ``encoders``, a mapping of
    modality names to modules that give ``(B, d_m)`` features; ``head``, a fusion head on these features; and ``rho``,
    the weight of the margin regularisation, by default 0.5. A fourth, ``crmt_criterion``, may say which targets it
    learns and by which loss, see :class:`~lightning_crmt.criterion.Criterion`. The mixin provides ``forward``,
    ``training_step``, ``validation_step``, ``test_step`` and ``predict_step``, and replaces those of the classes after
    it; everything else stays yours.

    Override ``split_batch`` for batches that are not ``(inputs, target)``. If you write a ``training_step`` in the
    class that has the mixin, begin with ``inputs, target = self.training_batch(batch)`` and return
    ``self.crmt_loss(self(inputs), target)``, alone or among other terms.

    Checkpoints hold the random states of the first process, so that a fit resumed at the end of an epoch equals one
    that was not interrupted. In the middle of an epoch that takes a loader with ``state_dict`` and
    ``load_state_dict``, such as torchdata's ``StatefulDataLoader``: with another, Lightning begins the epoch's data
    anew, and trains on as many batches as were left. Gradients of a step that was not yet made are lost.

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
    crmt_criterion: Criterion = Criterion()

    #: Whether ``forward`` refuses NaN and Inf, for which it waits for the device; not in copies by ``to_deploy``.
    checks_values = True
    #: The changes that callbacks have made for part of a fit.
    training_stage: Stage

    __call__: Callable[..., FusionOutput]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checks the order of the bases."""
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(CRMTMixin)]:
            if issubclass(base, LightningModule) and not issubclass(base, CRMTMixin):
                raise TypeError(f"{cls.__name__} must have CRMTMixin before {base.__name__} among its bases")

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Gives the module its stage, whichever ``__init__`` of its bases it calls."""
        module = super().__new__(cls)
        module.training_stage = Stage(module)
        return module

    def forward(self, inputs: Inputs) -> FusionOutput:
        """Logits and uni-modal scores of a batch.

        Args:
            inputs: one tensor per modality, and what encoders or head must know besides, see
                :func:`~lightning_crmt.modality.context_of`: with ``"audio.present"``, the scores of samples without
                audio are dropped, and its encoder sees repetitions of samples that have it in their place.

        Raises:
            ValueError, TypeError: naming the modality, for inputs that are missing, unknown, ragged, NaN or Inf.
        """
        if not self.checks_values or inputs is self.training_stage.unchecked:
            check_named_batch(inputs, self.encoders.keys())
        else:
            check_inputs(inputs, self.encoders.keys())
        return answer(self.head, encoded(self.encoders, inputs), present_of(inputs))

    def split_batch(self, batch: Any) -> tuple[Inputs, Tensor]:
        """``(inputs, target)`` of a batch as the data loader gives it; the one place to override for another form."""
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Mapping):
            raise TypeError(
                f"a batch must be (inputs, target) with inputs by modality, got {describe(batch)}; "
                "override `split_batch` for another form"
            )
        return flattened(batch[0]), batch[1]

    def counted_batch(self, batch: Any) -> tuple[Inputs, Tensor]:
        """The samples of a batch that count, which may be none, and their checked target; see ``crmt_criterion``.

        For evaluations and passes over data: it waits for the device.
        """
        inputs, target = self.split_batch(batch)
        size = len(next(iter(inputs.values())))
        checked = self.crmt_criterion.check(target, self.head.num_classes, size)
        counted = self.crmt_criterion.counted(checked)
        if counted is None or bool(counted.all()):
            return inputs, parts_of(checked)[0]
        rows = counted.nonzero().squeeze(1)
        return select(inputs, rows), parts_of(checked)[0][rows]

    def training_batch(self, batch: Any) -> tuple[Inputs, Target]:
        """``split_batch``, then the changes of training methods, such as adversarial inputs or mixtures of samples."""
        self.training_stage.calls.add("training_batch")
        transformed: tuple[Inputs, Target] = self.split_batch(batch)
        for method in self.training_stage.methods:
            transformed = method.transform(self, *transformed)
        self.training_stage.unchecked = transformed[0]
        return transformed

    @property
    def stage_objective(self) -> StageObjective:
        """The current objective: step 1's loss, or the one that a callback pushed last."""
        return self.training_stage.objective or StageObjective("loss", self._step_1)

    def crmt_loss(self, output: FusionOutput, target: Target) -> Tensor:
        r"""The loss of a step: cross-entropy, ``rho`` times the margin regularisation, and the terms of the methods.

        .. math:: \mathrm{CE}(h, y) + \rho L_1

        A callback, such as ``RadiusTraining``, may put an objective of its own in the place of the first two. Samples
        that ``crmt_criterion`` ignores are left out of all terms; of a batch without others the loss is 0.

        Raises:
            ValueError: if logits, scores or the inputs of ``training_batch`` are not finite, or a class is out of
                range.
            TypeError: if the target is not of the kind that ``crmt_criterion`` says.
        """
        self.training_stage.calls.add("crmt_loss")
        output, target = self._check_step(output, target)
        if size_of(target) == 0:
            return torch.stack([each.sum() for each in (output.logits, *output.scores.values())]).sum()
        loss = self.stage_objective.loss(output, target)
        if output.present:
            # Of a modality that no sample of a process has, distributed training needs gradients all the same.
            loss = loss + 0.0 * torch.stack([score.sum() for score in output.scores.values()]).sum()
        terms = [method.term(self, output, target) for method in self.training_stage.methods]
        return sum((term for term in terms if term is not None), start=loss)

    def _check_step(self, output: FusionOutput, target: Target) -> tuple[FusionOutput, Target]:
        """Check what a step computed, and the inputs that ``forward`` left to this, in one wait for the device.

        Returns:
            The output and the target, in the form of its kind, of the samples that count.
        """
        inputs, self.training_stage.unchecked = self.training_stage.unchecked or {}, None
        criterion, num_classes, size = self.crmt_criterion, self.head.num_classes, len(output.logits)
        ranges = criterion.ranges(target, num_classes, size)
        counted = criterion.counted(target)
        sound, count = usable([output.logits, *output.scores.values(), *inputs.values()], ranges, counted)
        if not sound:
            require_finite("inputs", inputs)
            check_logits(output.logits)
            criterion.check(target, num_classes, size)
            for name, score in output.scores.items():
                check_logits(score, f"scores[{name!r}]")
        target, self.training_stage.counted = criterion.formed(target), None
        if counted is None or count == size:
            return output, target
        # Those that count come first: as their number is known, taking them does not wait for the device again.
        rows = (~counted).to(torch.uint8).argsort(stable=True)[:count]
        self.training_stage.counted = rows
        return samples_of(output, rows), rows_of(target, rows)

    def _step_1(self, output: FusionOutput, target: Target) -> Tensor:
        loss = self.crmt_criterion.loss(output.logits, target)
        return loss + self.rho * smooth_margins(output.scores, target, present=output.present) if self.rho > 0 else loss

    def certify(
        self, inputs: Inputs, lipschitz: LipschitzConstants | None = None, *, level: Soundness | str = Soundness.SOUND
    ) -> Certificate:
        """Certificate of the predictions for ``inputs``, in evaluation mode and full precision.

        Args:
            inputs: one batch by modality.
            lipschitz: estimated constants, for radii that are estimates; bounds are checked to be of these weights.
            level: ``"rigorous"`` counts rounding too, see
                :func:`~lightning_crmt.certification.certify_late_fusion`, also for what it raises.

        >>> import torch
        >>> from lightning_crmt import CRMTModule
        >>> from lightning_crmt.encoders import MLP
        >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10)
        >>> model.certify({"audio": torch.randn(2, 20), "image": torch.randn(2, 30)}).soundness.label
        'certified'
        """
        if lipschitz is not None and not lipschitz.soundness.certified:
            return certify_late_fusion(
                self, inputs, lipschitz, level=level, multi_label=self.crmt_criterion.multi_label
            )
        return self.evaluation(inputs, lipschitz, level=level).certificate()

    def evaluation(
        self, inputs: Inputs, lipschitz: LipschitzConstants | None = None, *, level: Soundness | str = Soundness.SOUND
    ) -> Evaluation:
        """What certificates of one batch rest on, with and without some of the modalities; see :meth:`certify`.

        Raises:
            ValueError: if ``forward`` does more than the mixin's: bounds of the encoders say nothing about that.
        """
        changed = replaced_calls(self, CRMTMixin)
        hooks = [*self._forward_hooks.values(), *self._forward_pre_hooks.values()]
        changed += [f"the hook {getattr(hook, '__qualname__', type(hook).__name__)}" for hook in hooks]
        if changed:
            raise ValueError(
                "`forward` must be that of CRMTMixin, without hooks, to be certified: bounds of the encoders say "
                f"nothing about what {', '.join(changed)} does besides; estimated constants still give estimates"
            )
        return Evaluation(self, inputs, lipschitz, level=level, multi_label=self.crmt_criterion.multi_label)

    def to_deploy(self) -> Self:
        """A copy that only predicts: in evaluation mode, weights stored, without gradients and checks of values.

        It answers what this module does in evaluation mode, and certificates of either hold for both up to rounding.
        See :func:`~lightning_crmt.export.for_inference`, also for what it raises.

        >>> import torch
        >>> from lightning_crmt import CRMTModule
        >>> from lightning_crmt.encoders import MLP
        >>> deployed = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10).to_deploy()
        >>> type(deployed.head).__name__, deployed.training
        ('FixedFusion', False)
        >>> deployed({"audio": torch.full((1, 20), torch.nan), "image": torch.zeros(1, 30)}).logits.isnan().all()
        tensor(True)
        """
        deployed = cast(Self, for_inference(self))
        deployed.checks_values = False
        return deployed

    @override
    def to_onnx(
        self,
        file_path: Any = None,
        input_sample: Any = None,
        dynamic: Mapping[str, Mapping[int, str]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model in ONNX, for batches of any size: :func:`~lightning_crmt.export.export_onnx`.

        Args:
            file_path: where to save it, if anywhere.
            input_sample: one batch of inputs by name; ``example_input_array`` by default, also in a tuple.
            dynamic: dimensions beside the first that may have other sizes: ``{"text": {1: "length"}}``.
            kwargs: of ``torch.onnx.export``.

        Raises:
            TypeError: if there is no such batch.
        """
        inputs = self.example_input_array if input_sample is None else input_sample
        if isinstance(inputs, tuple | list) and len(inputs) == 1:
            (inputs,) = inputs
        if not isinstance(inputs, Mapping):
            raise TypeError(f"`input_sample` must be one batch of inputs by name, got {describe(inputs)}")
        return export_onnx(self, inputs, file_path, dynamic, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch; logs ``train/loss``, or under the name of a stage's own objective."""
        inputs, target = self.training_batch(batch)
        loss = self.crmt_loss(self(inputs), target)
        self.log(f"train/{self.stage_objective.name}", loss, batch_size=size_of(target))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``val/loss``, ``val/accuracy/joint`` and the accuracy of each modality's own scores, where present.

        With several labels per sample accuracy is the share of samples all of whose labels are right, and
        ``val/label_accuracy/joint`` that of labels.
        """
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the same as validation under ``test/``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities of the classes, or of each label, ``(B, K)``; takes a batch with or without target."""
        inputs = batch if isinstance(batch, Mapping) else self.split_batch(batch)[0]
        return self.crmt_criterion.probabilities(self(inputs).logits)

    def check_parts(self) -> None:
        """Check that the module has what the mixin needs.

        Raises:
            TypeError: naming ``encoders`` or ``head``, if it is missing or of another kind.
            ValueError: if they do not have the same modalities, ``rho`` is negative, or there is not a class weight
                for each class.
        """
        head, encoders = getattr(self, "head", None), getattr(self, "encoders", None)
        if not isinstance(encoders, Mapping | nn.ModuleDict):
            raise TypeError(f"`encoders` must map names of modalities to modules, got {describe(encoders)}")
        known = set(self.parameters())
        if not all(parameter in known for encoder in encoders.values() for parameter in encoder.parameters()):
            raise TypeError(
                "`encoders` must be an nn.ModuleDict: the parameters of a plain dict are not the module's, so that "
                "neither optimizers nor checkpoints know them"
            )
        if not isinstance(head, FusionHead):
            raise TypeError(f"`head` must be a fusion head such as OrthogonalFusion, got {describe(head)}")
        check_same_modalities("encoders", encoders.keys(), head.in_features)
        check_at_least(0, rho=self.rho)
        criterion = self._modules.get("crmt_criterion", self.crmt_criterion)  # a module would not be found by its name
        if not isinstance(criterion, Criterion):
            raise TypeError(f"`crmt_criterion` must be a Criterion, got {describe(criterion)}")
        self.crmt_criterion.check_settings(head.num_classes)

    if not TYPE_CHECKING:  # for type checkers it is Lightning's attribute: subclasses have both as bases

        @property
        def _compiler_ctx(self) -> None:
            """Set first by a Trainer that gets what ``torch.compile`` made of the module, before it replaces methods.

            Hooks and logging cannot follow compiled steps.

            Raises:
                TypeError: when it is set, so that the module is left as it was, and can be compiled in place.
            """

        @_compiler_ctx.setter
        def _compiler_ctx(self, context: dict[str, Any] | None) -> None:
            if context is not None:
                raise TypeError(
                    f"the Trainer must get the {type(self).__name__} itself, got what torch.compile made of it: "
                    "compile it in place, model.compile(), or its encoders, model.encoders[name].compile()"
                )

    @override
    def on_fit_start(self) -> None:
        """Checks the parts."""
        super().on_fit_start()
        self.check_parts()
        self.training_stage.calls.clear()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the random states, so that a resumed fit draws what it would have drawn."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_RANDOM_STATE] = random_state(self.trainer.strategy.root_device)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from the random states, if it is a fit that is resumed."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING and _RANDOM_STATE in checkpoint:
            self.training_stage.resume = partial(
                set_random_state, checkpoint[_RANDOM_STATE], self.trainer.strategy.root_device
            )
            self.training_stage.resume()

    @override
    def on_train_start(self) -> None:
        """In the middle of an epoch, goes on from the random states after the loader has drawn a seed once more."""
        super().on_train_start()
        self.training_stage.steps_before = self.trainer.global_step
        resume, self.training_stage.resume = self.training_stage.resume, None
        if resume is not None and not self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            resume()

    @override
    def on_train_end(self) -> None:
        """Warns if nothing called ``crmt_loss`` during the fit, unless it was resumed with no step left to make."""
        super().on_train_end()
        stage = self.training_stage
        if "crmt_loss" not in stage.calls and self.trainer.global_step != stage.steps_before:
            rank_zero_warn(
                "no training step called `crmt_loss`, so this was not CRMT: an overridden `training_step` must return "
                "`self.crmt_loss(self(inputs), target)`, alone or among other terms"
            )

    def _evaluate(self, batch: Any, split: str) -> None:
        inputs, target = self.split_batch(batch)
        output, criterion = self(inputs), self.crmt_criterion
        criterion.check(target, self.head.num_classes, len(output.logits))
        right, counted = criterion.answers(target), criterion.counted(target)
        # Floats, as Lightning divides whole numbers by the number of processes to whole numbers.
        size: Any = float(len(right) if counted is None else counted.sum())
        numbers = {str(Key(split, "loss")): criterion.loss(output.logits, target)}
        for name, scores in {"joint": output.logits, **output.scores}.items():
            hits = answers(scores, criterion.multi_label) == right
            values = {"accuracy": hits.all(dim=1) if criterion.multi_label else hits}
            if criterion.multi_label:
                values["label_accuracy"] = hits.float().mean(dim=1)
            here = output.present.get(name, counted)  # over the samples that have the modality, and count
            here = here & counted if here is not None and counted is not None else here
            means = {str(Key(split, what, name)): mean_over(each.float(), here) for what, each in values.items()}
            count: Any = float(len(right) if here is None else here.sum())
            self.log_dict(means, batch_size=count, sync_dist=True)
        self.log_dict(numbers, batch_size=size, sync_dist=True)


remember_code(CRMTMixin)
