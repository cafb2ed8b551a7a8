# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Observers that measure some samples alone: the same ones however they are dealt out, each once."""

import pytest
import torch
from support.processes import train
from support.scenarios.max_samples import SAMPLES
from torch.utils.data import DataLoader

from lightning_crmt.training import DealtSamples


def chosen(count):
    places = torch.arange(SAMPLES)
    return places[DealtSamples(DataLoader(range(SAMPLES))).chosen(places, count)].tolist()


def test_the_samples_are_the_same_in_any_split_of_the_batch(tmp_path):
    (whole,) = train("max_samples", tmp_path, batch_size=SAMPLES)
    for batch_size in (1, 4, 10):
        (split,) = train("max_samples", tmp_path, batch_size=batch_size)
        for case, (certified, attacked, numbers) in split.items():
            assert certified == attacked == chosen(int(case.split(",")[0]))
            if "sound" in case:  # estimates of batches are of other gradients, but for rounding
                assert numbers == pytest.approx(whole[case][2], rel=1e-4), case
    assert whole["43, sound"][2] == whole["100, sound"][2] != whole["7, sound"][2]


@pytest.mark.slow
def test_the_samples_are_the_same_in_two_processes(tmp_path):
    (alone,) = train("max_samples", tmp_path, batch_size=4)
    shared = train("max_samples", tmp_path, strategy="ddp", processes=2, batch_size=4)
    for case, (_, _, numbers) in alone.items():
        for kind in (0, 1):
            places = sorted(place for rank in shared for place in rank[case][kind])
            assert places == chosen(int(case.split(",")[0])), case
        for rank in shared:
            assert rank[case][2] == pytest.approx(numbers, rel=1e-5), case
