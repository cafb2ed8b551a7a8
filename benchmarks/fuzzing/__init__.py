# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A fuzzer of certificates: models drawn at random, and answers that certificates are measured by."""
