# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import CertifiedRobustness, RobustnessFigures
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.figures import robustness_figures

GRID = [0.0, 0.02, 0.04]


def model():
    return CRMTModule({"fou": LipschitzMLP(76, 16), "mor": LipschitzMLP(6, 16)}, num_classes=10)


def callbacks(constants="sound"):
    budgets = [{"fou": r, "mor": s} for r in GRID for s in GRID]
    return [CertifiedRobustness([0.0, 0.01, 0.02], constants=constants, budgets=budgets), RobustnessFigures()]


def test_curves_show_the_numbers():
    metrics = {
        "val/certified_accuracy/joint@0.1": 0.7,
        "val/certified_accuracy/joint@0.05": 0.8,
        "val/certified_accuracy/audio@0.1": 0.75,
        "val/estimated_accuracy/joint@0.1": 0.9,
        "val/certified_accuracy_worst_class/joint@0.1": 0.1,
        "val/certified_radius/joint": 0.3,
    }
    (figure,) = robustness_figures(metrics).values()
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"all together": [[0.05, 0.8], [0.1, 0.7]], "audio alone": [[0.1, 0.75]]}
    assert axes.get_ylabel() == "right, and certified to stay so"


def test_estimates_say_so():
    (figure,) = robustness_figures({f"test/estimated_accuracy/joint@{r}": 0.5 for r in (0.1, 0.2)}).values()
    assert "no guarantee" in figure.axes[0].get_ylabel()


def test_a_frontier_needs_a_full_grid():
    cells = {f"val/certified_accuracy/a={r}+b={s}": 1 - r - s for r in (0.0, 0.2) for s in (0.0, 0.3)}
    assert list(robustness_figures(cells)) == ["val/certified_frontier_a_b"]
    cells.popitem()
    assert robustness_figures(cells) == {}


@pytest.mark.parametrize("constants", ["sound", "estimated"])
def test_files_where_no_logger_takes_figures(constants, data, make_trainer, tmp_path):
    label = "certified" if constants == "sound" else "estimated"
    trainer = make_trainer(*callbacks(constants), logger=CSVLogger(tmp_path, name="", version=""), max_epochs=1)
    trainer.fit(model(), datamodule=data)
    trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"{s}_{label}_{what}.png" for s in ("val", "test") for what in ("curve", "frontier_fou_mor")}


def test_weights_and_biases_gets_them(data, make_trainer, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    logger, seen = WandbLogger(save_dir=tmp_path, offline=True), []
    monkeypatch.setattr(logger, "log_image", lambda key, images: seen.append(key))
    monkeypatch.setattr(logger, "log_metrics", lambda *args, **settings: None)
    make_trainer(*callbacks(), logger=logger).test(model(), datamodule=data, verbose=False)
    assert seen == ["test/certified_curve", "test/certified_frontier_fou_mor"]
    assert not (tmp_path / "figures").exists()
