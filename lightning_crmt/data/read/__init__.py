# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""From files to tensors: frames, flow and spectrograms of clips, recordings, files of packages; splits and scales."""
