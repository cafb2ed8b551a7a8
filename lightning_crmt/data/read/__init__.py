# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Read files into tensors (frames, flow and spectrograms of clips, recordings, data of packages), split and scale."""
