# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base of data modules of prepared videos: lists of clips, samples, and loaders."""
