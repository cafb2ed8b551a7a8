# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt reweight``: step 2 of CRMT on a checkpoint that was saved after step 1."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.cli import LightningCLI

from lightning_crmt.callbacks import IntegrationReweighting
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.reweighting import check_reweightable, keep_scores
from lightning_crmt.training import callbacks_of, in_order

_DESCRIPTION = """Step 2 of CRMT on a checkpoint: measures the constants and scores on the training data, optimises the
integration weights, and writes a checkpoint that differs in these alone. Settings are those of IntegrationReweighting
in the config, or its defaults. All other options are those of fit: --config, --model..., --data..., --trainer..."""

#: Where checkpoints written here say after how many steps of training; a state of the callback would ask for one.
_DONE_AT = "reweighted_at"

_ALREADY = "\nnote: step 2 had been done on this checkpoint already, and went on from its weights"


def reweight_command(words: Sequence[str], make: Callable[[list[str]], LightningCLI]) -> str:
    """Do what the words say; what there is to tell at the end.

    Args:
        words: those after ``lightning-crmt reweight``.
        make: makes model, data and Trainer from the words of ``fit``.

    Raises:
        SystemExit: with status 2 and the reason, for words that cannot be followed.
    """
    parser = argparse.ArgumentParser("lightning-crmt reweight", description=_DESCRIPTION)
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint of the same config")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    own, others = parser.parse_known_args(words)
    if not own.ckpt_path.is_file():
        parser.error(f"--ckpt_path must be a file, got {own.ckpt_path}")
    if own.out.exists():
        parser.error(f"--out must not exist yet, got {own.out}")
    cli = make(others)
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    if not isinstance(module, CRMTMixin):
        parser.error(f"--model must be a CRMT module, got {type(module).__name__}")
    if data is None:
        parser.error("--data must be given")
    step_2 = (callbacks_of(trainer, IntegrationReweighting) or [IntegrationReweighting()])[0]
    try:
        checkpoint = torch.load(own.ckpt_path, map_location="cpu", weights_only=True)
        state = checkpoint["state_dict"]
    except Exception as error:  # whatever reading a file of another kind raises
        parser.error(
            f"--ckpt_path must be a checkpoint with a `state_dict`, of tensors and plain Python, got {error!r}"
        )
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        parser.error(f"--ckpt_path must be a checkpoint of this config: {error}")
    module.to(trainer.strategy.root_device)
    module.check_parts()
    head = check_reweightable(module.head)
    data.prepare_data()
    data.setup("fit")
    loader: Any = in_order(data.train_dataloader()) if step_2.dataloader is None else step_2.dataloader
    with Tqdm((batch for _ in range(step_2.passes) for batch in loader), "Scores and constants", leave=False) as shown:
        counted = ((inputs, target) for inputs, target in map(module.counted_batch, shown) if len(target) > 0)
        right = ((inputs, module.crmt_criterion.answers(target)) for inputs, target in counted)
        kept = keep_scores(module, right, step_2.constants)
    steps, by_callback = checkpoint.get("global_step"), checkpoint.get("callbacks", {}).get(step_2.state_key, {})
    again = steps is not None and steps in (checkpoint.get(_DONE_AT), by_callback.get("done_at"))
    before = {name: float(weight.detach().mean()) for name, weight in head.integration_weights.items()}
    done = step_2.reweight(head, kept)
    head.load_state_dict(done.head.state_dict())
    checkpoint["state_dict"] = {name: value.cpu() for name, value in module.state_dict().items()}
    checkpoint[_DONE_AT] = steps
    own.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, own.out)
    weights = "\n".join(f"  {name}: {mean:.4f} -> {done.weights[-1][name]:.4f}" for name, mean in before.items())
    return (
        f"objective: {done.objective[0]:.4f} -> {done.objective[-1]:.4f}, over {len(kept.target)} samples\n"
        f"mean integration weight:\n{weights}\nwritten: {own.out}{_ALREADY * again}"
    )
