# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Sound upper bounds of Lipschitz constants, layer by layer."""
