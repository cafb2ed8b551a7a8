# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Each extra alone, in an environment of its own, does what it is for: `make extras`, or `python .ci/extras.py onnx`.

The wheel is installed without extras first; environments with one are copies of that by links. Versions are those of
constraints.txt. Takes a few minutes for each, most of it pip's.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ("--constraint", ROOT / "constraints.txt")

FIT = ["fit", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
OFFLINE = ["--trainer.logger.offline", "true"]
MODEL = """
import torch
from lightning_crmt import CRMTModule
from lightning_crmt.encoders import MLP
model = CRMTModule({"fou": MLP(4, 8), "mor": MLP(3, 8)}, num_classes=4).eval()
inputs, target = {"fou": torch.randn(6, 4), "mor": torch.randn(6, 3)}, torch.arange(6) % 4
"""
NO_OTHERS = """
import importlib.util
for name in ("matplotlib", "wandb", "foolbox", "transformers", "onnx", "mlxtend", "cv2"):
    assert importlib.util.find_spec(name) is None, f"{name} is there without an extra"
"""
#: By extra, "" for none: words of the command line, or code.
EXAMPLES = {
    "": [NO_OTHERS, [*FIT, "--config", ROOT / "examples/mfeat.yaml"], ["methods"]],
    "plot": [
        "from lightning_crmt.report import Run, figures_of\n"
        "runs = [Run('a', 'd', seed, {'test/accuracy/joint': 0.9 - seed / 10}) for seed in range(2)]\n"
        "from matplotlib.figure import Figure; assert Figure; figures_of(runs)",
    ],
    "report": [
        [*FIT, "--config", ROOT / "examples/mfeat.yaml"],
        ["test", "--config", ROOT / "examples/mfeat.yaml", "--trainer.accelerator", "cpu"],
        ["report", "lightning_logs"],
    ],
    "wandb": [
        [*FIT, "--config", ROOT / "examples/mfeat.yaml", "--trainer.logger", "WandbLogger", *OFFLINE],
    ],
    "attacks": [
        f"{MODEL}\nfrom lightning_crmt.attacks import AutoAttack, Budget, FoolboxDDN\n"
        "for kind in (AutoAttack, FoolboxDDN): kind(Budget(0.2))(model, inputs, target)",
    ],
    "transformers": [
        "import torch\nfrom transformers import BertConfig, BertModel\n"
        "from lightning_crmt.encoders import HuggingFaceEncoder\n"
        "tiny = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)\n"
        "assert HuggingFaceEncoder(BertModel(tiny))(torch.ones(2, 3, dtype=torch.long)).shape == (2, 16)",
    ],
    "onnx": [f"{MODEL}\nfrom lightning_crmt import export_onnx\nexport_onnx(model, inputs, 'model.onnx')"],
    "data": [
        [*FIT, "--config", ROOT / "examples/watch_motion.yaml"],
        "from lightning_crmt.data import SpokenWrittenDigits\nprint(len(SpokenWrittenDigits().parts['test']))",
    ],
    "video": [
        "import subprocess\nfrom pathlib import Path\nfrom lightning_crmt.data.prepare.ffmpeg import ffmpeg_program\n"
        "Path('videos').mkdir()\n"
        "source = 'testsrc=duration=2:size=64x48 [out0]; sine=duration=2 [out1]'\n"
        "subprocess.run([ffmpeg_program(), '-v', 'error', '-f', 'lavfi', '-i', source, 'videos/clip.mp4'], check=True)",
        ["prepare", "videos", "prepared"],
    ],
    "all": [
        "import cv2, foolbox, matplotlib, onnx, transformers, wandb\nimport lightning_crmt.cli, lightning_crmt.report"
    ],
}


def run(*words: object, cwd: Path | None = None) -> None:
    """Run a command; what it says is shown if it fails."""
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")


def install(python: Path, *what: object) -> None:
    """Install into an environment."""
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *CONSTRAINTS, *what)


def main(extras: list[str]) -> None:
    """Install and try each of these extras."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base = scratch / "base"
        run(sys.executable, "-m", "venv", base)
        install(base / "bin/python", "torch")
        tree = scratch / "tree"  # a copy, as building leaves files behind
        shutil.copytree(ROOT / "lightning_crmt", tree / "lightning_crmt", ignore=shutil.ignore_patterns("__pycache__"))
        for each in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / each, tree)
        run(base / "bin/python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, tree)
        (wheel,) = scratch.glob("*.whl")
        install(base / "bin/python", wheel)
        for extra in extras:
            here = base
            if extra:
                here = scratch / extra
                shutil.copytree(base, here, symlinks=True, copy_function=os.link)
                install(here / "bin/python", f"{wheel}[{extra}]")
            empty = scratch / f"work-{extra}"
            empty.mkdir()
            for example in EXAMPLES[extra]:
                words = ["-c", example] if isinstance(example, str) else ["-m", "lightning_crmt", *example]
                run(here / "bin/python", *words, cwd=empty)
            print(f"{extra or 'no extra'}: installs, imports, runs its example", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(EXAMPLES))
