# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Mistakes on the command line, and what each is told: what is wrong, where, and what was probably meant."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_crmt.cli import CRMTCLI, main

CONFIG = yaml.safe_load((Path(__file__).parent.parent / "examples" / "mfeat.yaml").read_text())
CONFIG["trainer"].update(
    accelerator="cpu", fast_dev_run=1, enable_progress_bar=False, logger=False, enable_checkpointing=False
)

OWN = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, size: int = 76):
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be positive, got {size}")
        self.layer = nn.Linear(size, 16)
        self.out_features = 16

    def forward(self, x):
        return self.layer(x)


class FailsInForward(Mine):
    def forward(self, x):
        raise RuntimeError("a bug of mine")


class MultipliesWrongly(Mine):
    def forward(self, x):
        return self.layer(x) @ torch.ones(3, 16)


class FailsInConstructor(Mine):
    def __init__(self):
        super().__init__()
        self.size = None + 1
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("LIGHTNING_CRMT_TRACEBACK", raising=False)
    Path("own.py").write_text(OWN)
    Path("wants_more.py").write_text("import nothing_like_it\n")
    Path("other_data.yaml").write_text("data: {class_path: WatchMotion, init_args: {views: [fou]}}\n")
    Path("other_class.yaml").write_text("data: WatchMotion\n")
    Path("half.yaml").write_text("model: {class_path: [\n")
    Path("half.py").write_text("def f(:\n")
    Path("fails.py").write_text("x = undefined\n")
    Path("latin.yaml").write_bytes("# mod\u00e9le\nmodel: CRMTModule\n".encode("latin1"))
    Path("tabs.yaml").write_text("model:\n\tclass_path: CRMTModule\n")
    Path("empty.yaml").write_text("")
    Path("two.yaml").write_text("methods: {a: run.yaml}\n")
    Path("no_seeds.yaml").write_text("methods: {a: run.yaml}\nseeds: 0\n")
    Path("wrong.yaml").write_text("methods:\n  a: [run.yaml, {model: {init_args: {rhoo: 1}}}]\n")
    Path("list.yaml").write_text("- model\n")
    Path("text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, "other.ckpt")
    yield
    for name in ("own", "wants_more", "half", "fails"):
        sys.modules.pop(name, None)


def typed(monkeypatch, *words):
    """What main does with words that were typed."""
    monkeypatch.setattr(sys, "argv", ["lightning-crmt", *words])
    main()


def told(monkeypatch, capsys, *words):
    """The lines of the error that the words end with."""
    with pytest.raises(SystemExit) as stop:
        typed(monkeypatch, *words)
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    lines = shown[shown.index("error: ") :].rstrip("\n").split("\n")
    assert len(lines) <= 5
    assert "Traceback" not in shown
    return lines


def written(edit):
    config = copy.deepcopy(CONFIG)
    edit(config)
    Path("run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def line_of(text):
    """The number of the only line of run.yaml that has the text."""
    (number,) = [number for number, line in enumerate(Path("run.yaml").read_text().split("\n"), 1) if text in line]
    return number


def model(c):
    return c["model"]["init_args"]


def encoder(c):
    return model(c)["encoders"]["fou"]


def callback(c, place):
    return c["trainer"]["callbacks"][place]


def attack(c):
    return callback(c, 3)["init_args"]["attacks"]["pgd"]


def convolution(kernel_size):
    init_args = {"in_channels": 1, "out_channels": 4, "kernel_size": kernel_size}
    return {"class_path": "torch.nn.Conv2d", "init_args": init_args}


AT_FOU = "model.init_args.encoders.fou"

#: What is changed in the config, what is told first, and the key that it is told of.
IN_THE_CONFIG = {
    # the fifteen
    "key at the top": (lambda c: c.update(modell=1), "there is no key `modell`; did you mean `model`?", "modell"),
    "key of a model": (
        lambda c: model(c).update(rhoo=1),
        "CRMTModule: 'rhoo' is not accepted; did you mean `rho`?",
        "model.init_args.rhoo",
    ),
    "key of an encoder": (
        lambda c: encoder(c)["init_args"].update(hiden=[8]),
        "MLP: 'hiden' is not accepted; did you mean `hidden`?",
        f"{AT_FOU}.init_args.hiden",
    ),
    "key five classes deep": (
        lambda c: attack(c)["init_args"]["budget"].update(modality=1),
        "Budget: 'modality' is not accepted; did you mean `modalities`?",
        "trainer.callbacks[3].init_args.attacks.pgd.init_args.budget.modality",
    ),
    "class name": (
        lambda c: encoder(c).update(class_path="MPL"),
        "there is no class `MPL`; did you mean `MLP`?",
        f"{AT_FOU}.class_path",
    ),
    "unknown callback": (
        lambda c: callback(c, 1).update(class_path="CertifiedRobustnes"),
        "there is no class `CertifiedRobustnes`; did you mean `CertifiedRobustness`?",
        "trainer.callbacks[1].class_path",
    ),
    "missing argument": (
        lambda c: encoder(c)["init_args"].pop("in_features"), "MLP needs `in_features`", AT_FOU
    ),
    "type": (lambda c: model(c).update(rho="abc"), "`rho` must be a number, got 'abc'", "model.init_args.rho"),
    "refused by a constructor": (
        lambda c: model(c).update(rho=-1.0), "`rho` must be at least 0, got -1.0", "model.init_args.rho"
    ),
    "tuple as torch takes it": (
        lambda c: model(c)["encoders"].update(fou=convolution("(3, 3)")),
        "`kernel_size` must be an integer or a list of 2, got '(3, 3)'",
        f"{AT_FOU}.init_args.kernel_size",
    ),
    "other modalities": (
        lambda c: c["data"]["init_args"].update(views=["fou", "zer"]),
        "`inputs` must hold exactly the modalities ['fou', 'mor']; got ['fou', 'zer']: "
        "missing ['mor'], unknown ['zer']",
        "",
    ),
    "other sizes": (
        lambda c: encoder(c)["init_args"].update(in_features=75),
        "the encoder of 'fou' failed on a float32 tensor of shape (64, 76): "
        "mat1 and mat2 shapes cannot be multiplied (64x76 and 75x128)",
        "",
    ),
    "data root": (
        lambda c: c.update(data={"class_path": "KineticsSounds", "init_args": {"root": "nowhere"}}),
        "there is no folder `root` = nowhere: `lightning-crmt prepare VIDEOS nowhere --kinds frames spectrograms` "
        "makes it from videos",
        "",
    ),
    "accelerator": (
        lambda c: c["trainer"].update(accelerator="gpuu"),
        "You selected an invalid accelerator name: `accelerator='gpuu'`",
        "trainer.accelerator",
    ),
    "more classes than features": (
        lambda c: model(c).update(num_classes=70),
        "`in_features['fou']` must be at least `num_classes` = 70, got 64",
        "model.init_args.num_classes",
    ),
    # more of them
    "key of the Trainer": (
        lambda c: c["trainer"].update(max_epoch=1),
        "there is no key `trainer.max_epoch`; did you mean `trainer.max_epochs`?",
        "trainer.max_epoch",
    ),
    "one of several words": (
        lambda c: callback(c, 0)["init_args"].update(objective="clippd"),
        "`objective` must be 'mean' or 'clipped', got 'clippd'; did you mean `clipped`?",
        "trainer.callbacks[0].init_args.objective",
    ),
    "tuple of three": (
        lambda c: model(c)["encoders"].update(fou=convolution([3, 3, 3])),
        "`kernel_size` must be an integer or a list of 2, got '[3, 3, 3]'",
        f"{AT_FOU}.init_args.kernel_size",
    ),
    "init_args forgotten": (
        lambda c: model(c)["encoders"].update(fou={"class_path": "MLP", "in_features": 76}),
        "`encoders`: the arguments of a class stand under `init_args`",
        "model.init_args.encoders",
    ),
    "class_path forgotten": (
        lambda c: encoder(c).pop("class_path"), "`encoders`: `in_features` is an argument of what class?", ""
    ),
    "list for a mapping": (
        lambda c: model(c).update(encoders=["MLP"]), "`encoders` must be a mapping, {NAME: VALUE}, got", ""
    ),
    "number for a list": (
        lambda c: callback(c, 1)["init_args"].update(radii=0.1),
        "`radii` must be a list, got '0.1'",
        "trainer.callbacks[1].init_args.radii",
    ),
    "callback for a model": (
        lambda c: c["model"].update(class_path="MissingModalities"),
        "MissingModalities, a Callback, cannot be `model`",
        "model.class_path",
    ),
    "class of another kind": (
        lambda c: model(c).update(head="torch.nn.ReLUU"),
        "module 'torch.nn' has no attribute 'ReLUU'; did you mean `ReLU`?",
        "model.init_args.head",
    ),
    "argument of the optimizer": (
        lambda c: model(c)["optimizer"]["init_args"].update(lrr=1.0),
        "AdamW: 'lrr' is not accepted; did you mean `lr`?",
        "model.init_args.optimizer.init_args.lrr",
    ),
    "number of the optimizer": (
        lambda c: model(c)["optimizer"]["init_args"].update(lr="1e-3x"),
        "`lr` must be a number or Tensor, got '1e-3x'",
        "model.init_args.optimizer.init_args.lr",
    ),
    "negative radius, of a class that goes without saying": (
        lambda c: attack(c)["init_args"]["budget"].update(radius=-1.0),
        "`radius` must be finite and at least 0",
        "trainer.callbacks[3].init_args.attacks.pgd.init_args.budget.radius",
    ),
    "unknown module": (
        lambda c: encoder(c).update(class_path="owm.Mine"),
        "`owm.Mine` cannot be imported: No module named 'owm'",
        f"{AT_FOU}.class_path",
    ),
    "module that lacks another": (
        lambda c: encoder(c).update(class_path="wants_more.Mine"),
        "`wants_more.Mine` cannot be imported: No module named 'nothing_like_it'",
        f"{AT_FOU}.class_path",
    ),
    "unknown class of one's own": (
        lambda c: encoder(c).update(class_path="own.Min"),
        "module 'own' has no attribute 'Min'; did you mean `Mine`?",
        f"{AT_FOU}.class_path",
    ),
    "refused by a constructor of one's own": (
        lambda c: model(c)["encoders"].update(fou={"class_path": "own.Mine", "init_args": {"size": 0}}),
        "size must be positive, got 0",
        AT_FOU,
    ),
    "other sizes for an encoder of one's own": (
        lambda c: model(c)["encoders"].update(fou={"class_path": "own.Mine", "init_args": {"size": 75}}),
        "the encoder of 'fou' failed on a float32 tensor of shape (64, 76)",
        "",
    ),
    "file of settings": (lambda c: c.update(data="parts/data.yaml"), "there is no file parts/data.yaml", "data"),
    "strategy": (
        lambda c: c["trainer"].update(strategy="dpp"), "You selected an invalid strategy name", "trainer.strategy"
    ),
    "precision": (
        lambda c: c["trainer"].update(precision="16-mixd"),
        "`trainer.precision` must be 64, 32, 16,",
        "trainer.precision",
    ),
    "encoders left empty": (lambda c: model(c).update(encoders=None), "CRMTModule needs `encoders`", "model"),
    "number for a class": (
        lambda c: encoder(c).update(class_path=5), "`encoders`: `class_path` must name a class", "model.init_args.enc"
    ),
    "logger": (
        lambda c: c["trainer"].update(logger={"class_path": "CSVLoger"}),
        "there is no class `CSVLoger`; did you mean `CSVLogger`?",
        "trainer.logger.class_path",
    ),
    "logger by its name alone": (
        lambda c: c["trainer"].update(logger="CSVLoger"),
        "`trainer.logger` must be Logger, a list, true, false or null, got 'CSVLoger'; did you mean `CSVLogger`?",
        "trainer.logger",
    ),
    "names of features": (
        lambda c: model(c).update(in_features={"fuo": 64}),
        "`in_features` must hold exactly the modalities ['fou', 'mor']; got ['fou', 'mor', 'fuo']: unknown ['fuo']",
        "model.init_args.in_features",
    ),
    "input without its dimensions": (
        lambda c: encoder(c).update(class_path="ConvNet2d", init_args={"in_channels": 1, "out_features": 64}),
        "the encoder of 'fou' failed on a float32 tensor of shape (64, 76): `x` must have shape (B, 1, H, W)",
        "",
    ),
    "no model": (lambda c: c.pop("model"), "`model` must be given", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_THE_CONFIG)
def test_in_the_config(name, monkeypatch, capsys):
    edit, first, key = IN_THE_CONFIG[name]
    written(edit)
    lines = told(monkeypatch, capsys, "fit", "--config", "run.yaml")
    assert lines[0].startswith(f"error: {first}")
    if key:
        assert lines[1].startswith(f"  at {key}")
        assert "(run.yaml, line " in lines[1]


@pytest.mark.parametrize(
    ("settings", "first", "key"),
    [
        ({"model": "transformers.BertModel", "config": {"hiden_size": 3}}, "`config` must hold settings of", "config"),
        ({"model": "transformers.AutoModel", "config": {}}, "`model` must be a class with one configuration", "model"),
        ({"pretrained": "no/such/folder/here"}, "`pretrained` must be the name on the hub, or a folder", "pretrained"),
    ],
)
def test_models_of_transformers(settings, first, key, monkeypatch, capsys):
    """An argument called ``config`` is not the option ``--config``."""
    pytest.importorskip("transformers")
    written(lambda c: model(c)["encoders"].update(fou={"class_path": "HuggingFaceEncoder", "init_args": settings}))
    lines = told(monkeypatch, capsys, "fit", "--config", "run.yaml")
    assert lines[0].startswith(f"error: {first}")
    assert lines[1].startswith(f"  at {AT_FOU}.init_args.{key} (run.yaml, line ")


ON_THE_COMMAND_LINE = {
    # the fifteen, too
    "no such config": (["--config", "nothing.yaml"], "there is no file "),
    "not YAML": (["--config", "half.yaml"], "half.yaml, line 2, column 1: not YAML: "),
    "no such checkpoint": (["--ckpt_path", "no.ckpt"], "`ckpt_path` must be a checkpoint, got no.ckpt: there is no"),
    "files that contradict": (["--config", "other_data.yaml"], "WatchMotion: 'views' is not accepted"),
    # more of them
    "files of other modalities": (["--config", "other_class.yaml"], "`inputs` must hold exactly the modalities"),
    "tabs": (["--config", "tabs.yaml"], "tabs.yaml, line 2, column 1: not YAML: "),
    "not UTF-8": (["--config", "latin.yaml"], "latin.yaml cannot be read: 'utf-8' codec can't decode"),
    "empty": (["--config", "empty.yaml"], "empty.yaml is empty"),
    "list": (["--config", "list.yaml"], "list.yaml must hold keys and values, such as `model: ...`"),
    "folder": (["--config", "."], "`config`: Path is not a file: "),
    "no checkpoint": (["--ckpt_path", "text.ckpt"], "`ckpt_path` must be a checkpoint"),
    "option": (["--trainer.max_epoch=1"], "there is no option `--trainer.max_epoch`; did you mean `--trainer.max_ep"),
    "option with one dash": (["-trainer.max_epochs=1"], "there is no option `-trainer.max_epochs`; did you mean `--t"),
    "option without dashes": (["trainer.max_epochs=1"], "`trainer.max_epochs` belongs to no option"),
    "option without value": (["--trainer.max_epochs"], "argument --trainer.max_epochs: expected one argument"),
    "value": (["--model.init_args.rho=abc"], "`rho` must be a number, got 'abc'"),
    "key": (["--model.init_args.rhoo=1"], "CRMTModule: 'rhoo' is not accepted; did you mean `rho`?"),
    "class to be explained": (
        ["--model.help", "CRMTModul"],
        "there is no class `CRMTModul`; did you mean `CRMTModule`",
    ),
}


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_on_the_command_line(name, monkeypatch, capsys):
    words, first = ON_THE_COMMAND_LINE[name]
    written(lambda c: None)
    lines = told(monkeypatch, capsys, "fit", "--config", "run.yaml", *words)
    assert lines[0].startswith(f"error: {first}")


OF_SUBCOMMANDS = {
    "nothing to compare": (["compare"], "a comparison must be given, a file"),
    "no such comparison": (["compare", "nowhere.yaml"], "there is no file nowhere.yaml"),
    "comparison that is not YAML": (["compare", "half.yaml"], "half.yaml, line 2, column 1: not YAML: "),
    "comparison that is a list": (
        ["compare", "list.yaml"],
        "list.yaml must hold keys and values, such as `methods: ..",
    ),
    "config for a comparison": (["compare", "run.yaml"], "run.yaml is a config of fit: a comparison names"),
    "option of compare": (["compare", "two.yaml", "--dryrun"], "there is no option `--dryrun`"),
    "seeds of compare": (["compare", "no_seeds.yaml"], "`seeds` must be how many, or a list of integers from 0, got 0"),
    "config in a comparison": (["compare", "wrong.yaml"], "CRMTModule: 'rhoo' is not accepted; did you mean `rho`?"),
    "subcommand": (["fitt"], "there is no subcommand `fitt`; did you mean `fit`?"),
    "no subcommand": (["--config", "run.yaml"], "a subcommand must come first: lightning-crmt SUBCOMMAND ..."),
    "nothing to fit": (["fit"], "`data` and `model` must be given"),
    "words after methods": (["methods", "Mixup"], "`lightning-crmt methods` takes nothing, got Mixup"),
    "option of prepare": (["prepare", "a", "b", "--siez", "9"], "there is no option `--siez`; did you mean `--size`?"),
    "kind of prepare": (
        ["prepare", "a", "b", "--kinds", "frame"],
        "`kinds` must be 'frames', 'spectrograms' or 'flow', got 'frame'; did you mean `frames`?",
    ),
    "nothing to prepare": (["prepare"], "`videos` and `output` must be given"),
    "folder to prepare": (["prepare", "nowhere", "b"], "`videos` must be a folder, got 'nowhere', and there is none"),
    "option of reweight": (
        ["reweight", "--confg", "run.yaml", "--ckpt_path", "other.ckpt", "--out", "two.ckpt"],
        "there is no option `--confg`; did you mean `--config`?",
    ),
}


@pytest.mark.parametrize("name", OF_SUBCOMMANDS)
def test_of_subcommands(name, monkeypatch, capsys):
    words, first = OF_SUBCOMMANDS[name]
    written(lambda c: None)
    assert told(monkeypatch, capsys, *words)[0].startswith(f"error: {first}")


def test_a_comparison_has_lines_too(monkeypatch, capsys):
    written(lambda c: None)
    lines = told(monkeypatch, capsys, "compare", "wrong.yaml")
    assert lines[1:] == ["  in the method 'a' on the data 'data'", "  at methods.a (wrong.yaml, line 2)"]
    lines = told(monkeypatch, capsys, "compare", "no_seeds.yaml")
    assert lines[1:] == ["  at seeds (no_seeds.yaml, line 2)"]


def test_the_line_is_that_of_the_entry(monkeypatch, capsys):
    """Not that of a namesake: both encoders are of one class with the same keys."""
    written(lambda c: model(c)["encoders"]["mor"]["init_args"].update(in_features="six"))
    lines = told(monkeypatch, capsys, "fit", "--config", "run.yaml")
    assert lines[1] == f"  at model.init_args.encoders.mor.init_args.in_features (run.yaml, line {line_of('six')})"


def test_the_file_is_the_one_that_is_wrong(monkeypatch, capsys):
    written(lambda c: None)
    Path("second.yaml").write_text("trainer: {max_epochs: 1}\nmodel: {init_args: {rho: abc}}\n")
    lines = told(monkeypatch, capsys, "fit", "--config", "run.yaml", "-c=second.yaml")
    assert lines[1] == "  at model.init_args.rho (second.yaml, line 2)"


def test_a_file_that_a_file_names_is_looked_into(monkeypatch, capsys):
    Path("parts").mkdir()
    Path("parts/optimizer.yaml").write_text("class_path: torch.optim.SGD\ninit_args:\n  momentun: 0.9\n")
    written(lambda c: model(c).update(optimizer="parts/optimizer.yaml"))
    lines = told(monkeypatch, capsys, "fit", "--config", "run.yaml")
    assert lines[0] == "error: SGD: 'momentun' is not accepted; did you mean `momentum`?"
    assert lines[1] == "  at model.init_args.optimizer.init_args.momentun (parts/optimizer.yaml, line 3)"


def test_a_list_for_a_kernel_size_works(monkeypatch):
    def edit(c):
        model(c)["encoders"]["fou"] = convolution([3, 3])
        model(c)["in_features"] = {"fou": 4}

    written(edit)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    made = CRMTCLI(["--config", "run.yaml", "--model.init_args.num_classes=4"], run=False)
    assert made.model.encoders["fou"].kernel_size == (3, 3)


@pytest.mark.parametrize("name", ["FailsInForward", "MultipliesWrongly", "FailsInConstructor"])
def test_a_bug_of_ones_own_keeps_its_traceback(name, monkeypatch):
    written(lambda c: model(c)["encoders"].update(fou={"class_path": f"own.{name}"}))
    with pytest.raises((RuntimeError, TypeError)) as caught:
        typed(monkeypatch, "fit", "--config", "run.yaml")
    frames = [*caught.traceback, *traceback_of(caught.value.__cause__)]
    assert any(Path(str(frame.path)).name == "own.py" for frame in frames)
    assert "Union" not in str(caught.value)


def test_a_module_of_ones_own_that_is_not_python(monkeypatch, capsys):
    written(lambda c: encoder(c).update(class_path="half.Mine"))
    (line,) = told(monkeypatch, capsys, "fit", "--config", "run.yaml")
    assert line.startswith(f"error: {Path.cwd() / 'half.py'}, line 1: not Python: ")


def test_a_bug_in_a_module_of_ones_own_keeps_its_traceback(monkeypatch):
    written(lambda c: encoder(c).update(class_path="fails.Mine"))
    with pytest.raises(NameError, match="undefined") as caught:
        typed(monkeypatch, "fit", "--config", "run.yaml")
    assert Path(str(caught.traceback[-1].path)).name == "fails.py"


def traceback_of(error):
    return [] if error is None else pytest.ExceptionInfo.from_exception(error).traceback


def test_a_bug_in_a_training_step_of_ones_own_keeps_its_traceback(monkeypatch):
    Path("own.py").write_text(
        "from lightning_crmt import CRMTModule\n\n\nclass Mine(CRMTModule):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        raise ValueError('a bug of mine')\n"
    )
    written(lambda c: c["model"].update(class_path="own.Mine"))
    with pytest.raises(ValueError, match="a bug of mine"):
        typed(monkeypatch, "fit", "--config", "run.yaml")


def test_tracebacks_can_be_had(monkeypatch):
    written(lambda c: model(c).update(rho=-1.0))
    monkeypatch.setenv("LIGHTNING_CRMT_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"^`rho` must be at least 0, got -1.0"):
        typed(monkeypatch, "fit", "--config", "run.yaml")


def test_called_from_python_constructors_raise(monkeypatch):
    written(lambda c: model(c).update(rho=-1.0))
    monkeypatch.setattr(sys, "argv", ["mine"])
    with pytest.raises(ValueError, match="`rho` must be at least 0, got"):
        main(["fit", "--config", "run.yaml"])


def test_a_bare_command_says_what_there_is(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        typed(monkeypatch)
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    own = ("compare", "methods", "prepare", "report", "reweight", "certify", "attack")
    for name in ("fit", "validate", "test", "predict", *own):
        assert f"\n  lightning-crmt {name} " in shown


def test_help_is_short_and_has_the_headline(monkeypatch, capsys):
    for words in (["--help"], ["fit", "--help"], ["test", "-h"]):
        with pytest.raises(SystemExit) as stop:
            typed(monkeypatch, *words)
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "Robust multi-modal classifiers" in shown
        assert shown.count("\n") <= 25
    with pytest.raises(SystemExit) as stop:
        typed(monkeypatch, "fit", "--help.full")
    assert stop.value.code == 0
    assert "--trainer.accumulate_grad_batches" in capsys.readouterr().out


@pytest.mark.slow
def test_in_its_own_process(tmp_path):
    """What a shell sees: five lines at most beside what Lightning logs, no traceback; a bug with one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    run = [sys.executable, "-m", "lightning_crmt", "fit", "--config", "run.yaml"]
    written(lambda c: model(c)["encoders"].update(fou={"class_path": "own.Mine", "init_args": {"size": 75}}))
    ended = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "raised in own.py, line 15" in ended.stderr
    written(lambda c: model(c)["encoders"].update(fou={"class_path": "own.FailsInForward"}))
    ended = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert 'raise RuntimeError("a bug of mine")' in ended.stderr
