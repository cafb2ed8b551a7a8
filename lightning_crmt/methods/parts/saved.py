# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""State of callbacks in checkpoints."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar


class Saved:
    """Keeps attributes of a callback in checkpoints, for a resumed run to continue with; must come first in the bases.

    They must be tensors and plain Python, as resuming loads with ``weights_only``.

    >>> class Counting(Saved):
    ...     saved = ("steps",)
    ...     steps = 3
    >>> Counting().state_dict()
    {'steps': 3}
    """

    #: The names of the attributes.
    saved: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Any]:
        """Copies of the attributes."""
        return {name: deepcopy(getattr(self, name)) for name in self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the attributes from an interrupted run."""
        for name in self.saved:
            setattr(self, name, state_dict[name])
