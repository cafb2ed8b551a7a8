# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of videos into frames, flow and spectrograms, once: ``lightning-crmt prepare``."""
