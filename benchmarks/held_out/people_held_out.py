# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Data whose seed decides who is held out, for comparisons: voices of spoken digits, subjects of watch motion.

Comparisons set one number for a seed, ``data.init_args.seed``; here it says who, too.
"""

from typing import Any

from lightning_crmt.data import SpokenWrittenDigits, WatchMotion

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SUBJECTS = tuple(range(1, 11))


class VoicesHeldOut(SpokenWrittenDigits):
    """Of six speakers two to test on and one to validate on; the next seed begins with the next speaker.

    Args:
        seed: also decides the pairs.
        **settings: as :class:`~lightning_crmt.data.SpokenWrittenDigits` takes them; ``recordings`` are needed, as the
            installed coefficients do not say who speaks.
    """

    def __init__(self, *, seed: int = 0, **settings: Any) -> None:
        *test, validation = in_turn(SPEAKERS, seed, 3)
        super().__init__(seed=seed, held_out_speakers=test, validation_speakers=[validation], **settings)


class SubjectsHeldOut(WatchMotion):
    """Of ten subjects three to test on and two to validate on; the next seed begins three further.

    Args:
        seed: also decides the order of batches.
        **settings: as :class:`~lightning_crmt.data.WatchMotion` takes them.
    """

    def __init__(self, *, seed: int = 0, **settings: Any) -> None:
        people = in_turn(SUBJECTS, 3 * seed, 5)
        super().__init__(seed=seed, held_out_subjects=people[:3], validation_subjects=people[3:], **settings)


def in_turn(people: tuple[Any, ...], first: int, count: int) -> list[Any]:
    """So many, in a circle."""
    return [people[(first + i) % len(people)] for i in range(count)]
