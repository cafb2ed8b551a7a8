# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a scenario with several processes, which cannot be done inside pytest.

``train`` starts this file as a script, and DDP starts it again for each further process.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parent.parent


class TrainingError(Exception):
    """The script stopped with an error, or not in time; the message is what it wrote."""


def train(scenario, folder, *, strategy="auto", processes=1, batch_size, timeout=600):
    """What each process ended with, in the order of their ranks; a single one is this one."""
    if processes == 1:
        torch.set_num_threads(1)
        return [_scenario(scenario).train(strategy, 1, batch_size, Path(folder))]
    command = [sys.executable, __file__, scenario, strategy, str(processes), str(batch_size), str(folder)]
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = started.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(started)
        raise TrainingError(f"{scenario} took longer than {timeout} s:\n{started.communicate()[0]}") from None
    finally:
        _end(started)  # also where pytest itself is interrupted
    if started.returncode != 0:
        raise TrainingError(f"{scenario} ended with status {started.returncode}:\n{output}")
    return [torch.load(_saved(folder, rank), weights_only=True) for rank in range(processes)]


def _end(started):
    """Ends the script and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)


def _scenario(name):
    return importlib.import_module(f"support.scenarios.{name}")


def _saved(folder, rank):
    return Path(folder) / f"rank-{rank}.pt"


def main(scenario, strategy, processes, batch_size, folder):
    torch.set_num_threads(1)
    result = _scenario(scenario).train(strategy, int(processes), int(batch_size), Path(folder))
    # Lightning sets the rank for the processes that it starts; the first one knows none.
    torch.save(result, _saved(folder, os.environ.get("LOCAL_RANK", "0")))


if __name__ == "__main__":
    main(*sys.argv[1:])
