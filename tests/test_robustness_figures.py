# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import PGD, Budget, MissingModality
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness, RobustnessFigures
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.evaluation import read_keys, robustness_figures

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
    (figure,) = robustness_figures(read_keys(metrics)).values()
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"all modalities together": [[0.05, 0.8], [0.1, 0.7]], "audio alone": [[0.1, 0.75]]}
    assert axes.get_ylabel() == "right, and certified to stay so"


ATTACKED = {
    **{f"val/clean_accuracy/{name}": 0.9 for name in ("pgd", "noise", "pgd-image", "both", "small", "boxed")},
    "val/robust_accuracy/pgd@0.1": 0.8,
    "val/robust_accuracy/pgd@0.2": 0.7,
    "val/robust_accuracy/noise@0.1": 0.88,
    "val/robust_accuracy/pgd-image@0.2": 0.85,
    "val/robust_accuracy/both@audio=0.1+image=0.3": 0.6,
}


def drawn(figure):
    return {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}


def test_attacks_have_a_curve_each_from_the_clean_accuracy_on():
    (name,), (figure,) = zip(*robustness_figures(read_keys(ATTACKED)).items(), strict=True)
    assert name == "val/robust_curve"
    assert drawn(figure) == {
        "pgd": [[0, 0.9], [0.1, 0.8], [0.2, 0.7]],
        "noise": [[0, 0.9], [0.1, 0.88]],
        "pgd-image": [[0, 0.9], [0.2, 0.85]],
        "both (radius of image; audio: 0.333 of it)": [[0, 0.9], [0.3, 0.6]],
    }
    assert figure.axes[0].get_ylabel() == "right under this attack\n(an upper bound of robustness)"
    one_radius = {key: value for key, value in ATTACKED.items() if "pgd@0.2" not in key}
    assert robustness_figures(read_keys(one_radius)) == {}


def test_bounds_of_the_same_threat_share_a_picture():
    metrics = ATTACKED | {
        "val/robust_accuracy/small@0.3": 0.71,
        "val/robust_accuracy/boxed@0.3": 0.72,
        "val/certified_accuracy/joint@0.1": 0.6,
        "val/certified_accuracy/joint@0.2": 0.5,
        "val/certified_accuracy/audio@0.1": 0.7,
        "val/certified_accuracy/audio@0.2": 0.6,
        "val/estimated_accuracy/joint@0.1": 0.75,
        "test/certified_accuracy/joint@0.1": 0.4,
        "test/certified_accuracy/joint@0.2": 0.3,
    }
    threats = {"pgd": "joint", "noise": "joint", "small": "joint", "pgd-image": "image", "boxed": "joint, linf"}
    found = robustness_figures(read_keys(metrics), threats)
    assert [name for name in found if "bounds" in name] == ["val/bounds_joint"]
    assert drawn(found["val/bounds_joint"]) == {
        "right under the attack pgd (upper bound)": [[0, 0.9], [0.1, 0.8], [0.2, 0.7]],
        "right under the attack noise (upper bound)": [[0, 0.9], [0.1, 0.88]],
        "right under the attack small (upper bound)": [[0, 0.9], [0.3, 0.71]],
        "certified to stay right (lower bound)": [[0.1, 0.6], [0.2, 0.5]],
        "estimated to stay right (no guarantee)": [[0.1, 0.75]],
    }
    (between,) = found["val/bounds_joint"].axes[0].collections
    corners = {tuple(point) for point in between.get_paths()[0].vertices.round(6).tolist()}
    assert corners == {(0.1, 0.6), (0.1, 0.8), (0.2, 0.5), (0.2, 0.7)}, "up to the strongest attack at each radius"
    assert not [name for name in robustness_figures(read_keys(metrics)) if "bounds" in name], "of unknown threats"
    titles = set(drawn(found["val/robust_curve"]))
    assert titles >= {"pgd", "pgd-image (image)", "boxed (joint, linf)"}, "what is not l2 joint is named"


def test_curves_that_coincide_are_all_seen():
    """Later ones are smaller and dashed otherwise; no marker is cut; many names go below the axes."""
    numbers = {f"test/robust_accuracy/{name}@{r}": 1.0 for name in "abcdef" for r in (0.0, 0.1)}
    (figure,) = robustness_figures(read_keys(numbers)).values()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    looks = [(line.get_linestyle(), line.get_marker(), line.get_markersize()) for line in axes.lines]
    assert len(set(looks)) == 6
    assert axes.get_ylim() == (-0.02, 1.02)
    assert axes.get_legend() is None
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0
    few = {key: value for key, value in numbers.items() if key[21] in "abc"}
    (figure,) = robustness_figures(read_keys(few)).values()
    assert figure.axes[0].get_legend() is not None


@pytest.mark.parametrize(("limit", "together"), [(None, True), (1, False)])
def test_the_callback_knows_what_attacks_perturb(limit, together, data, make_trainer, tmp_path):
    attacks = {
        "pgd": PGD(Budget(0.5), steps=3),
        "pgd-fou": PGD(Budget(1.0, modalities=["fou"]), steps=3),
        "linf": PGD(Budget(0.1, norm="linf"), steps=3),
        "product": PGD(Budget({"fou": 0.1, "mor": 0.1}), steps=3),
        "gone": MissingModality(),
    }
    attacking = AdversarialRobustness(attacks, radii=[0.02, 0.04], max_batches=limit)
    attacking._check = lambda *args: None
    assert attacking.threats == {"pgd": "joint", "pgd-fou": "fou", "linf": "joint, linf", "product": "fou+mor"}
    observers = [CertifiedRobustness([0.01, 0.02]), attacking, RobustnessFigures()]
    make_trainer(*observers).test(model(), datamodule=data, verbose=False)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    bounds = {"test_bounds_joint", "test_bounds_fou"} if together else set()
    assert names == {"test_certified_curve", "test_robust_curve"} | bounds


def test_an_attack_on_one_radius_by_name_is_of_that_modality():
    numbers = {f"val/robust_accuracy/pgd@fou={r}": 0.5 for r in ("0.1", "1e+06")}
    numbers |= {f"val/certified_accuracy/fou@{r}": 0.5 for r in (0.1, 0.2)}
    found = robustness_figures(read_keys(numbers), {"pgd": "fou"})
    points = drawn(found["val/bounds_fou"])["right under the attack pgd (upper bound)"]
    assert points == [[0.1, 0.5], [1e6, 0.5]]


def test_nothing_to_draw_is_said_once(data, make_trainer, tmp_path):
    figures = RobustnessFigures()
    trainer = make_trainer(CertifiedRobustness([0.1]), figures)
    with pytest.warns(UserWarning, match="has nothing to draw: a curve needs two `radii` or more"):
        trainer.test(model(), datamodule=data, verbose=False)
    trainer.test(model(), datamodule=data, verbose=False)
    assert not (tmp_path / "figures").exists()


def test_estimates_say_so():
    (figure,) = robustness_figures(read_keys({f"test/estimated_accuracy/joint@{r}": 0.5 for r in (0.1, 0.2)})).values()
    assert "no guarantee" in figure.axes[0].get_ylabel()


def test_a_frontier_needs_a_full_grid():
    cells = {f"val/certified_accuracy/a={r}+b={s}": 1 - r - s for r in (0.0, 0.2) for s in (0.0, 0.3)}
    assert list(robustness_figures(read_keys(cells))) == ["val/certified_frontier_a_b"]
    cells.popitem()
    assert robustness_figures(read_keys(cells)) == {}


@pytest.mark.parametrize("constants", ["sound", "estimated"])
def test_files_where_no_logger_takes_figures(constants, data, make_trainer, tmp_path):
    label = "certified" if constants == "sound" else "estimated"
    trainer = make_trainer(*callbacks(constants), logger=CSVLogger(tmp_path, name="", version=""), max_epochs=1)
    trainer.fit(model(), datamodule=data)
    trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {f"{s}_{label}_{what}.png" for s in ("val", "test") for what in ("curve", "frontier_fou_mor")}


def test_a_full_disk_does_not_end_a_fit_that_is_done(data, make_trainer, tmp_path):
    make_trainer(*callbacks(), max_epochs=1).fit(model(), data)
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
        path.symlink_to("/dev/full")
    trainer = make_trainer(*callbacks(), max_epochs=1)
    with pytest.warns(UserWarning, match="could not save its figures, the numbers are logged: .*No space left"):
        trainer.fit(model(), data)
    assert trainer.state.finished
    assert "val/certified_accuracy/joint@0.01" in trainer.callback_metrics


def test_weights_and_biases_gets_them(data, make_trainer, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    logger, seen = WandbLogger(save_dir=tmp_path, offline=True), []
    monkeypatch.setattr(logger, "log_image", lambda key, images: seen.append(key))
    monkeypatch.setattr(logger, "log_metrics", lambda *args, **settings: None)
    make_trainer(*callbacks(), logger=logger).test(model(), datamodule=data, verbose=False)
    assert seen == ["test/certified_curve", "test/certified_frontier_fou_mor"]
    assert not (tmp_path / "figures").exists()


def test_a_missing_matplotlib_is_known_before_the_work(make_trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    trainer = make_trainer(RobustnessFigures(), max_epochs=1)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_crmt\[plot\]"):
        trainer.fit(model(), datamodule=UCIMultiFeatures())
    assert trainer.global_step == 0
