# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Devices without double precision, as MPS is one, on a device of that kind that is written in Python.

It refuses double precision, and to mix its tensors with those of the CPU; which operations MPS itself lacks, it cannot
tell.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_crmt import modality
from lightning_crmt.modality import in_double, widened, widest

SCRIPT = Path(__file__).parent / "support" / "fits_on_single_device.py"
RUNS = ["measured", "AdversarialRobustness", "CertifiedRobustness", "RadiusTraining"]


def test_double_precision_is_there_but_for_mps():
    assert widest(torch.device("mps")) is torch.float32
    assert {widest(torch.device(kind)) for kind in ("cpu", "cuda", "xpu", "meta")} == {torch.float64}


def test_widened_and_in_double(monkeypatch):
    value = torch.ones(2, dtype=torch.bfloat16)
    assert widened(value).dtype is in_double(value).dtype is torch.float64
    monkeypatch.setattr(modality, "_SINGLE_ONLY", {"cpu"})
    assert widened(value).dtype is torch.float32
    assert widened(value.double()).dtype is torch.float32
    assert in_double(value).dtype is torch.float64


@pytest.mark.slow
def test_numbers_are_those_of_the_cpu():
    pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices that are written in Python")
    process = subprocess.run([sys.executable, SCRIPT, *RUNS], capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("[")]
    assert [name for name, _, _ in lines] == RUNS
    for name, there, here in lines:
        assert len(there) > 5, name
        assert here == pytest.approx(there, rel=1e-3, abs=1e-5), name
