# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What several test files share: models, data, slow formulas, and runs in processes of their own."""
