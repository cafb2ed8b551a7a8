# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m lightning_crmt`` is ``lightning-crmt``."""

from lightning_crmt.cli import main

if __name__ == "__main__":
    main()
