# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Turn a folder of videos into frames, flow and spectrograms, once: ``lightning-crmt prepare``."""
