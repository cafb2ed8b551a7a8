# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Data modules of prepared videos: which clips are listed, what a sample is, and how they are served."""
