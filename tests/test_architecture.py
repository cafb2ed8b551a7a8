# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Imports go down only, through the doors; CONTRIBUTING.md lists the rooms; what is public is documented."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_crmt"

#: From the ground up. A room may import those before it.
ORDER = [
    "version", "deprecation", "checks", "modality", "targets", "criterion", "soundness", "frozen_eval", "encoding",
    "random_state", "noise", "layers", "export", "encoders", "fusion", "lipschitz", "attacks", "certification",
    "smoothing", "losses", "reweighting", "evaluation", "report", "metrics", "data", "stage", "mixin", "module",
    "training", "callbacks", "methods", "cli", "__main__",
]  # fmt: skip

NUMERICAL = ORDER[: ORDER.index("reweighting") + 1]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "lightning_crmt" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

#: The modules that say what they export.
PUBLIC = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in [PACKAGE / "__init__.py", *FILES]
    if re.search("^__all__ = ", path.read_text(), re.MULTILINE)
]


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} == set(ORDER)


def test_contributing_lists_the_rooms_from_the_ground_up():
    table = re.findall(r"^\| (`.*?) \|", (PACKAGE.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(table)) == ORDER


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    place = ORDER.index(room_of(path))
    above = {room for room in imported_rooms(path) if ORDER.index(room) > place}
    assert not above


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_other_rooms_are_entered_by_their_door(path):
    """What another room needs is exported by its ``__init__``; its files are its own business."""
    deep = [
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("lightning_crmt.")
        and node.module.count(".") > 1
        and node.module.split(".")[1] != room_of(path)
    ]
    assert not deep


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_a_dump(path):
    assert path.stem not in ("utils", "core", "common", "helpers")


def test_numerical_rooms_load_without_lightning():
    script = "\n".join(
        [
            "import sys",
            "for name in ('lightning', 'pytorch_lightning', 'wandb', 'matplotlib'): sys.modules[name] = None",
            *(f"import lightning_crmt.{room}" for room in NUMERICAL),
            "from lightning_crmt import certify, estimate_lipschitz, margin_regularization, OrthogonalFusion",
        ]
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_exported_is_documented(name):
    """With a summary in one line."""
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for exported in (getattr(module, each) for each in module.__all__):
        ours = getattr(exported, "__module__", "").startswith("lightning_crmt.")  # and no alias of a foreign type
        if ours and (inspect.isclass(exported) or inspect.isroutine(exported)):
            summary, *rest = (exported.__doc__ or "").split("\n")
            assert summary.strip(), exported
            assert not rest or not rest[0].strip(), exported


def test_the_type_checker_is_not_silenced():
    """Types say what is what: no assertion for their sake, and hardly a line that is exempt."""
    text = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert not [path for path, code in text.items() if "assert isinstance" in code]
    assert sum(code.count("type: ignore") for code in text.values()) <= 12
