# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What callbacks change in a module for a while, and that nothing of it is left behind however a fit ends."""

import copy
import inspect
import pickle
import signal
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from support.every_callback import MAKE, head_for
from torch import nn

from lightning_crmt import CRMTModule, callbacks, methods
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import MemoryFusion
from lightning_crmt.methods import FeatureMemory, GradientModulation, Method, Mixup, UnimodalLosses
from lightning_crmt.stage import Stage, StageObjective


def objective(name):
    return StageObjective(name, lambda output, target: output.logits.sum())


# --- the stage itself


def test_the_last_objective_counts_and_its_owner_takes_it_back():
    stage = Stage(nn.Linear(1, 1))
    stage.push("a", objective=objective("one"))
    stage.push("b", objective=objective("two"))
    assert stage.objective.name == "two"
    stage.pop("a")
    stage.pop("a")  # nothing any more
    assert stage.objective.name == "two"
    stage.push("a", objective=objective("three"))
    stage.pop("a")
    assert stage.objective.name == "two"
    stage.pop("b")
    assert stage.objective is None


def test_methods_are_active_under_any_objective():
    stage, first, second = Stage(nn.Linear(1, 1)), Method(), Method()
    stage.push(first, method=first)
    stage.push(second, method=second)
    assert stage.methods == [first, second]
    stage.push("radius", objective=objective("radius"))
    assert stage.methods == [first, second]
    stage.pop(first)
    assert stage.methods == [second]


def test_owners_are_told_apart_by_identity():
    class Equal:
        def __eq__(self, other):
            return True

        __hash__ = None

    stage, one, other = Stage(nn.Linear(1, 1)), Equal(), Equal()
    stage.push(one, objective=objective("one"))
    stage.push(other, objective=objective("other"))
    stage.pop(one)
    assert stage.objective.name == "other"


def test_what_was_done_is_undone_last_first():
    module, done = nn.Linear(1, 1), []
    stage = Stage(module)
    stage.push("me", undo=lambda: done.append(1))
    stage.push("me", heads=nn.Linear(2, 2), undo=lambda: done.append(2))
    assert [name for name, _ in module.named_children()] == ["auxiliary_heads_of_str"]
    stage.pop("you")
    assert done == []
    stage.pop("me")
    assert done == [2, 1]
    assert not list(module.children())


def test_a_new_objective_forgets_the_calls(make_model):
    module = make_model().eval()
    inputs = {"fou": torch.randn(2, 76), "mor": torch.randn(2, 6)}
    module.crmt_loss(module(module.training_batch((inputs, None))[0]), torch.tensor([0, 1]))
    assert module.training_stage.calls == {"training_batch", "crmt_loss"}
    module.training_stage.push("me", objective=objective("mine"))
    assert module.training_stage.calls == set()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_starts_with_an_empty_stage_of_its_own(copied, make_model):
    module = make_model()
    module.training_stage.push("me", objective=objective("mine"), method=Mixup())
    again = copied(module)
    assert again.training_stage.objective is None
    assert again.training_stage.methods == []
    again.training_stage.push("you", heads=nn.Linear(1, 1))
    assert not hasattr(module, "auxiliary_heads_of_str")
    assert hasattr(again, "auxiliary_heads_of_str")
    assert module.training_stage.objective.name == "mine"


def test_a_model_that_is_done_with_goes_at_once(make_model):
    gone = []

    class Watched(nn.Linear):
        def __del__(self):
            gone.append(self)

    module = make_model()
    module.extra = Watched(1, 1)
    del module
    assert gone


def test_averaged_weights_are_those_of_the_same_parameters(make_model, make_trainer, data):
    """A copy of the module is made within the fit, and walked in step with it: parameters, then buffers."""
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="came with lightning 2.6")

    class Look(averaging.EMAWeightAveraging):
        def on_train_epoch_end(self, trainer, pl_module):
            average = self._average_model.module
            assert average.training_stage.methods == []
            assert not list(reachable(average, (Callback, Trainer)))
            found = dict(average.named_parameters()) | dict(average.named_buffers())
            assert {name: value.shape for name, value in found.items()} == {
                name: value.shape
                for name, value in (dict(pl_module.named_parameters()) | dict(pl_module.named_buffers())).items()
            }

    module = make_model()
    make_trainer(UnimodalLosses(), GradientModulation(), Look(decay=0.5)).fit(module, data)
    assert module.training_stage.methods == []
    assert all(value.isfinite().all() for value in module.state_dict().values())


def reachable(start, kinds):
    """Objects of some kinds that can be reached from the attributes of another, but by those that Lightning lends."""
    seen, waiting = {id(start)}, [{key: each for key, each in vars(start).items() if key not in ("log", "log_dict")}]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            parts = list(value.values())
        elif isinstance(value, list | tuple | set):
            parts = list(value)
        elif callable(value) and hasattr(value, "func"):  # partial
            parts = [value.func, value.args, value.keywords]
        elif inspect.ismethod(value):
            parts = [value.__self__]
        elif hasattr(value, "__dict__") and not inspect.isclass(value) and not inspect.ismodule(value):
            parts = list(vars(value).values())
        else:
            continue
        for part in parts:
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
                if isinstance(part, kinds):
                    yield part


# --- every callback of the package


class Boom(Callback):
    """Fails, or presses Ctrl-C, in the middle of an epoch, or when the callbacks before it are set up."""

    def __init__(self, error, where):
        self.error, self.where = error, where

    def setup(self, trainer, pl_module, stage):
        if self.where == "setup":
            raise self.error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.where == "training" and trainer.current_epoch == 2 and batch_idx == 1:
            raise self.error


class Seed(Callback):
    """Whatever was drawn before, a fit begins with the same random state."""

    def on_train_start(self, trainer, pl_module):
        seed_everything(1, verbose=False)


def test_every_callback_is_tried():
    exported = {name: getattr(room, name) for room in (callbacks, methods) for name in room.__all__}
    kinds = {name for name, kind in exported.items() if inspect.isclass(kind) and issubclass(kind, Callback)}
    assert kinds - {"Method", "Observer"} == MAKE.keys()


def looks(module):
    """All that a callback could change in a module, but for the values of its weights."""
    return {
        "attributes": set(vars(module)),
        "modes": {name: part.training for name, part in module.named_modules()},
        "trainable": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "objective": module.training_stage.objective,
        "methods": module.training_stage.methods,
        "pushed": list(module.training_stage._pushed),
    }


@pytest.fixture
def handlers():
    """Lightning ignores SIGINT from the first Ctrl-C on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


FAILURES = {
    "error": (ArithmeticError("on purpose"), "training"),
    "ctrl_c": (KeyboardInterrupt(), "training"),
    "setup": (ArithmeticError("on purpose"), "setup"),
}


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")  # as meant here
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", MAKE)
def test_a_fit_that_fails_leaves_nothing_behind(name, failure, make_model, make_trainer, data, handlers):
    # A rate that makes validation losses go up and down, so that modalities stop.
    settings = {"head": head_for(name), "optimizer": lambda groups: torch.optim.SGD(groups, 0.5)}

    def fit(callback, module, **more):
        trainer = make_trainer(*([callback] if callback else []), max_epochs=2, **more)
        trainer.fit(module, data)
        return module.state_dict(), {key: float(value) for key, value in trainer.callback_metrics.items()}

    data.batch_size = 600  # two steps an epoch
    error, where = FAILURES[failure]
    callback, module = MAKE[name](), make_model(**settings)
    _ = module.hparams  # made by Lightning when it is asked for, as a fit does
    module.encoders["fou"][0].weight.requires_grad_(False)
    module.encoders["fou"][1].eval()
    before = looks(module)
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else ArithmeticError):
        make_trainer(callback, Boom(error, where), max_epochs=3).fit(module, data)
    assert looks(module) == before
    assert not list(reachable(callback, (LightningModule, Trainer)))

    # The next fit without the callback is as that of any module with these weights.
    plain = make_model(**settings)
    plain.encoders["fou"][0].weight.requires_grad_(False)
    plain.encoders["fou"][1].eval()
    plain.load_state_dict(module.state_dict())
    results = []
    for each in (module, plain):
        seed_everything(1, verbose=False)
        results.append(fit(None, each))
    assert "train/loss" in results[0][1]
    assert_same(*results)

    # The next fit with the callback is as one with a fresh one.
    if name not in FRESH:
        FRESH[name] = fit(MAKE[name](), make_model(**settings))
    assert_same(fit(callback, make_model(**settings)), FRESH[name])


#: What a fit with a fresh callback ends with.
FRESH = {}


def assert_same(first, second):
    (weights, numbers), (others, other_numbers) = first, second
    assert weights.keys() == others.keys()
    assert [name for name, value in weights.items() if not value.equal(others[name])] == []
    assert numbers == pytest.approx(other_numbers, rel=0, abs=0, nan_ok=True)


# --- parts that are built late


class Late(CRMTModule):
    """Builds its parts when Lightning asks for them, which is after the ``setup`` of callbacks."""

    again = False

    def __init__(self, make):
        LightningModule.__init__(self)
        self.make = make

    def configure_model(self):
        if self.again or not hasattr(self, "head"):
            whole = self.make()
            self.encoders, self.head, self.rho = whole.encoders, whole.head, whole.rho
            self.make_optimizer, self.make_lr_scheduler = whole.make_optimizer, None


@pytest.mark.filterwarnings("ignore:RobustnessFigures has nothing to draw")
@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")
@pytest.mark.parametrize("name", MAKE)
def test_parts_built_in_configure_model(name, make_model, make_trainer, data):
    make = partial(make_model, head=head_for(name))

    def fit(module):
        trainer = make_trainer(MAKE[name](), Seed(), max_epochs=2)
        trainer.fit(module, data)
        numbers = {key: float(value) for key, value in trainer.callback_metrics.items()}
        tested = make_trainer(MAKE[name](), max_epochs=2).test(Late(lambda: module), data, verbose=False)
        return module.state_dict(), numbers | tested[0]

    assert_same(fit(Late(make)), fit(make()))


@pytest.mark.parametrize("name", ["CertifiedRobustness", "RadiusTraining", "Relearning"])
def test_parts_built_twice_are_refused(name, make_model, make_trainer, data):
    module = Late(make_model)
    module.again = True
    with pytest.raises(RuntimeError, match="`configure_model` of Late must leave alone what it has built"):
        make_trainer(MAKE[name]()).fit(module, data)


# --- searches before a fit


class TriesBatchSizes(BatchSizeFinder):
    """Tries the size that the data have."""

    def __init__(self):
        super().__init__(init_val=200, max_trials=1, steps_per_trial=1)

    def on_fit_start(self, trainer, pl_module):
        with isolate_rng():  # as the other does
            super().on_fit_start(trainer, pl_module)


FINDERS = {
    "rate": lambda: LearningRateFinder(num_training_steps=3, update_attr=False),
    "batch_size": TriesBatchSizes,
}


@pytest.fixture(scope="module")
def without_search():
    """What fits without a search end with, by callback."""
    return {}


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")
@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("name", MAKE)
def test_a_search_before_the_fit_leaves_nothing_behind(name, finder, without_search, make_model, make_trainer, data):
    """It trains for a while without the hooks of any callback, and goes back to a checkpoint."""

    def fit(*finders):
        module = make_model(head=head_for(name))
        trainer = make_trainer(*finders, MAKE[name](), max_epochs=2, accumulate_grad_batches=2)
        trainer.fit(module, data)
        return module.state_dict(), {key: float(value) for key, value in trainer.callback_metrics.items()}

    if name not in without_search:
        without_search[name] = fit()
    assert_same(fit(FINDERS[finder]()), without_search[name])


def test_teachers_are_ready_for_a_search(make_model, make_trainer, data):
    seen = set()

    class Watched(MLP):
        def forward(self, x):
            seen.add((self.training, any(parameter.requires_grad for parameter in self.parameters())))
            return super().forward(x)

    method = methods.TeacherFeatures({"mor": Watched(6, 16)})
    make_trainer(FINDERS["rate"](), method, max_epochs=1).fit(make_model(), data)
    assert seen == {(False, False)}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_checkpoint_saved_on_an_error_holds_what_a_resumed_run_needs(make_model, make_trainer, data, tmp_path):
    """Lightning saves it after the callbacks have released what they pushed."""
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_exception=True)
    trainer = make_trainer(UnimodalLosses(), Boom(ArithmeticError(), "training"), saving, enable_checkpointing=True)
    with pytest.raises(ArithmeticError):
        trainer.fit(make_model(), data)
    states = [torch.load(path, weights_only=True)["callbacks"] for path in tmp_path.glob("*.ckpt")]
    assert states
    for state in states:
        assert len(state["UnimodalLosses"]) == 4


def test_memory_is_weights_and_stays(make_model, make_trainer, data):
    module = make_model(head=partial(MemoryFusion, atoms=20, steps=20))
    make_trainer(FeatureMemory(start_epoch=0), max_epochs=1).fit(module, data)
    assert bool(module.head.filled)
