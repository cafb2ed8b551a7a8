# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One file for each training that runs in processes of its own; ``support.processes`` starts them.

Each has ``train(strategy, processes, batch_size, folder)``, which returns what the tests compare.
"""
