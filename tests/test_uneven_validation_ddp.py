# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A process without validation data is an error in all, and not a wait without end."""

import pytest
from support.processes import train
from support.scenarios.uneven_validation import CALLBACKS

pytestmark = pytest.mark.slow


def test_a_process_without_validation_batches_is_named(tmp_path):
    for said in train("uneven_validation", tmp_path, strategy="ddp", processes=2, batch_size=10, timeout=60):
        assert said.keys() == {kind.__name__ for kind in CALLBACKS}
        for message in said.values():
            assert message.startswith("every process must have evaluation batches")
            assert "[1] had none of a loader" in message
    (alone,) = train("uneven_validation", tmp_path, batch_size=10)
    assert alone == {}
