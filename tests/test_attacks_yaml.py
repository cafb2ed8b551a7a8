# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks from YAML and from the command line."""

import pytest
import torch
from jsonargparse import ArgumentParser
from support.linear_model import Linear, samples

from lightning_crmt.attacks import APGD, PGD, Attack, Box, Budget, Ensemble, MissingModality, RandomSearch


def parsed(*arguments, tmp_path=None, yaml=None):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attack", type=Attack)
    parser.add_argument("--config", action="config")
    if yaml is not None:
        path = tmp_path / "attack.yaml"
        path.write_text(yaml)
        arguments = ("--config", str(path))
    config = parser.parse_args(arguments)
    return getattr(parser, "instantiate", None or parser.instantiate_classes)(config).attack


FORMS = {
    "0.2": Budget(0.2),
    "{audio: 0.1, image: 0.3}": Budget({"audio": 0.1, "image": 0.3}),
}


@pytest.mark.parametrize("radius", FORMS)
def test_radii(radius, tmp_path):
    attack = parsed(
        yaml=f"attack:\n  class_path: PGD\n  init_args: {{budget: {{radius: {radius}}}, steps: 3}}\n", tmp_path=tmp_path
    )
    assert isinstance(attack, PGD)
    assert attack.steps == 3
    assert attack.budget.radius == FORMS[radius].radius


def test_all_settings_of_a_budget(tmp_path):
    attack = parsed(
        yaml="""
attack:
  class_path: lightning_crmt.attacks.APGD
  init_args:
    budget:
      class_path: lightning_crmt.attacks.Budget
      init_args:
        radius: 0.2
        norm: linf
        modalities: [audio, image]
        box:
          audio: [-3, 3.0]
          image: {low: 0.0, high: 1.0, mean: [0.5, 0.25], std: 0.25}
    targeted: true
    classes: 2
""",
        tmp_path=tmp_path,
    )
    assert isinstance(attack, APGD)
    assert attack.budget.box == {"audio": Box(-3, 3.0), "image": Box(0.0, 1.0, mean=[0.5, 0.25], std=0.25)}
    assert (attack.budget.norm, attack.budget.modalities, attack.classes) == ("linf", ["audio", "image"], 2)


def test_command_line():
    attack = parsed("--attack=RandomSearch", "--attack.budget.radius=0.3", "--attack.steps=7")
    assert isinstance(attack, RandomSearch)
    assert (attack.budget.radius, attack.steps) == (0.3, 7)


def test_an_ensemble_and_presets(tmp_path):
    yaml = """
attack:
  class_path: Ensemble
  init_args:
    attacks:
      - {class_path: FGM, init_args: {budget: {radius: 0.3}}}
      - {class_path: lightning_crmt.attacks.paper_pgd, init_args: {budget: {radius: 0.3}}}
      - {class_path: lightning_crmt.attacks.strongest, init_args: {budget: {radius: 0.3}, steps: 4}}
"""
    attack = parsed(yaml=yaml, tmp_path=tmp_path)
    assert isinstance(attack, Ensemble)
    assert [type(each).__name__ for each in attack.attacks] == ["FGM", "PGD", "Ensemble"]
    x = samples()
    assert attack.logits(Linear(), x, torch.zeros(20, dtype=torch.long)).shape == (20, 4)


def test_missing_modalities(tmp_path):
    yaml = "attack: {class_path: MissingModality, init_args: {fill: {image: 0.5, audio: [1, 2, 3, 4, 5]}}}"
    attack = parsed(yaml=yaml, tmp_path=tmp_path)
    assert isinstance(attack, MissingModality)
    assert attack.logits(Linear(), samples(), torch.zeros(20, dtype=torch.long)).shape == (20, 4)
    assert parsed("--attack=MissingModality", "--attack.fill=dropped").fill == "dropped"


@pytest.mark.parametrize(
    "bad",
    [
        "{class_path: PGD, init_args: {budget: {radius: 0.2}, stepz: 3}}",
        "{class_path: PGD, init_args: {budget: {radius: 0.2, smell: 3}}}",
        "{class_path: PGD, init_args: {budget: {radius: 0.2, norm: l1}}}",
        "{class_path: PGD, init_args: {budget: {radius: 0.2, box: {image: {low: 0, hihg: 1}}}}}",
        "{class_path: PGD, init_args: {budget: {radius: 0.2}, loss: cw}}",
        "{class_path: PGD, init_args: {budget: {radius: far}}}",
        "{class_path: PDG, init_args: {budget: {radius: 0.2}}}",
    ],
)
def test_misspelt_keys_and_values_are_refused(bad, tmp_path):
    with pytest.raises(Exception, match="attack") as refused:
        parsed(yaml=f"attack: {bad}\n", tmp_path=tmp_path)
    assert type(refused.value).__name__ == "ArgumentError"
