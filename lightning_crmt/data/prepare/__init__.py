# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Turn folders of videos into frames, flow and spectrograms, once."""
