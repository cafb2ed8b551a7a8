# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks of other libraries on several inputs, to check our own by: the extra ``attacks``."""
