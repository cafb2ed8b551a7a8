# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks from other libraries, run on several inputs, to check our own against; they need the extra ``attacks``."""
