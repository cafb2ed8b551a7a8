# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a scenario with several processes, which cannot be done inside pytest.

They are forks of a process that imported once, and are told of each other by variables, as ``torchrun`` does it.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch

TESTS = Path(__file__).parent.parent

_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


class TrainingError(Exception):
    """A process stopped with an error, or not in time; the message is what it wrote."""


def train(scenario, folder, *, strategy="auto", processes=1, batch_size, timeout=600):
    """What each process ended with, in the order of their ranks; a single one is this one."""
    if processes == 1:
        torch.set_num_threads(1)
        return [_scenario(scenario).train(strategy, 1, batch_size, Path(folder))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _CONTEXT.set_forkserver_preload(["lightning.pytorch", "lightning_crmt"])
    started = [
        _CONTEXT.Process(target=_rank, args=(rank, processes, port, scenario, strategy, batch_size, str(folder)))
        for rank in range(processes)
    ]
    paths = [str(TESTS), str(TESTS.parent), *sys.path]
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}):
        for process in started:
            process.start()
    deadline = time.monotonic() + timeout
    try:
        while any(process.is_alive() for process in started):
            if any(process.exitcode for process in started):
                time.sleep(1.0)  # the others may have a reason of their own
                break
            if time.monotonic() > deadline:
                raise TrainingError(f"{scenario} took longer than {timeout} s:\n{_written(folder, processes)}")
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.join()
    if any(process.exitcode for process in started):
        codes = [process.exitcode for process in started]
        raise TrainingError(f"{scenario} ended with status {codes}:\n{_written(folder, processes)}")
    return [torch.load(_saved(folder, rank), weights_only=True) for rank in range(processes)]


def _rank(rank, processes, port, scenario, strategy, batch_size, folder):
    """The life of one process."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    os.chdir(folder)
    torch.set_num_threads(1)
    with open(_log(folder, rank), "w", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            result = _scenario(scenario).train(strategy, processes, batch_size, Path(folder))
        except BaseException:
            import traceback

            traceback.print_exc()
            raise
    torch.save(result, _saved(folder, rank))


def _scenario(name):
    return importlib.import_module(f"support.scenarios.{name}")


def _saved(folder, rank):
    return Path(folder) / f"rank-{rank}.pt"


def _log(folder, rank):
    return Path(folder) / f"rank-{rank}.log"


def _written(folder, processes):
    return "\n".join(_log(folder, rank).read_text() for rank in range(processes) if _log(folder, rank).exists())
