# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Any videos with sound: classes, persons and parts from the names of the clips, or from lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.data.read.spectrogram import SpectrogramReader
from lightning_crmt.data.video.lists import Listed, clips_below, few, hold_out, lines_of, named, names_of, plain
from lightning_crmt.data.video.module import ClipDataModule

_PARTS = ("train", "val", "test")


class AudioVideoFolder(ClipDataModule):
    r"""Prepared videos with sound whose names, or lists, say what they show: ``image`` and ``audio``.

    ``pattern`` says what the name of a clip means: the path below the folder of each modality, without suffix. By
    default clips lie in ``<class>/<clip>``, or in ``train/<class>/<clip>`` and ``test/<class>/<clip>``. For CREMA-D
    (Cao et al., 2014), whose clips are called like ``1001_DFA_ANG_XX``, it names the person and the emotion, so that
    no person is in two parts: see ``examples/videos/crema_d.yaml``.

    Without ``parts``, and without a part in the names, ``test_share`` of each class is held out for the test and
    ``val_share`` of the rest for validation, whole groups at a time. Samples are those of
    :class:`~lightning_crmt.data.KineticsSounds`.

    Args:
        root: the folder that ``lightning-crmt prepare`` made of the videos, or one like it.
        pattern: a regular expression for the whole name, with a group called ``label``, the class; perhaps ``group``,
            which no split separates, such as the person; and perhaps ``part``: ``train``, ``val`` or ``test``.
        parts: list files below ``root`` that say what ``train``, ``test`` and perhaps ``val`` hold, by lines
            ``name,label`` or ``name,number,label``, as released with OGM-GE, or ``name label``. A label is the name of
            a class, or its place in ``classes``. Groups still come from names, where these match ``pattern``.
        test_share: share of the groups of each class for the test, where nothing else says what is in it.
        spectrograms: folder of the spectrograms below ``root``.
        audio_rows: length of a spectrogram, 10 ms each; shorter ones are padded.
        audio_mean: :math:`\mu`, what is subtracted from the energies.
        audio_std: :math:`\sigma`; they are divided by :math:`2\sigma`.
        **settings: ``frames``, ``val_share``, ``classes`` (fewer, or in another order), ``size``, ``moments``,
            ``batch_size``, ``num_workers`` and ``seed``, see ``ClipDataModule``.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a list is malformed, no name matches the pattern,
            or a class has no clips.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.

    >>> emotions = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
    >>> pattern = r"(.*/)?(?P<group>\d+)_[A-Z]+_(?P<label>[A-Z]+)_[A-Z]+"
    >>> AudioVideoFolder("crema-d", pattern=pattern, classes=emotions).num_classes
    6
    """

    def __init__(
        self,
        root: str,
        *,
        pattern: str = "((?P<part>train|val|test)/)?(?P<label>(?!(train|val|test)/)[^/]+)/.+",
        parts: Mapping[str, str] | None = None,
        test_share: float = 0.2,
        spectrograms: str = "spectrograms",
        audio_rows: int = 1024,
        audio_mean: float = -4.503877,
        audio_std: float = 5.141276,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_at_least(1, audio_rows=audio_rows)
        reader = SpectrogramReader(audio_mean, audio_std, audio_rows)
        self.folders["audio"], self.readers["audio"] = spectrograms, reader
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"`pattern` must be a regular expression, got {pattern!r}: {error}") from error
        if "label" not in self.pattern.groupindex:
            raise ValueError(f"`pattern` must have a group (?P<label>...), got {pattern!r}")
        if parts is not None and not {"train", "test"} <= set(parts) <= set(_PARTS):
            raise ValueError(f"`parts` must say what 'train', 'test' and perhaps 'val' are, got {dict(parts)}")
        if not 0 < test_share < 1:
            raise ValueError(f"`test_share` must be above 0 and below 1, got {test_share}")
        self.sources = None if parts is None else dict(parts)
        self.test_share = test_share

    @override
    def all_classes(self) -> Sequence[str]:
        """Names of the classes: those given, or all that there are, sorted; these are looked up on the disk."""
        if self.chosen_classes is not None:
            return self.chosen_classes
        return sorted({clip.label for clips in self.listed().values() for clip in clips})

    @override
    def listed(self) -> dict[str, list[Listed]]:
        if self.sources is not None:
            return {part: self._read(part, source) for part, source in self.sources.items()}
        parts: dict[str, list[Listed]] = {"train": []}
        reader = self.readers_of("train")["audio"]
        names = clips_below(reader.folder, reader.suffix)
        for name in names:
            if match := self.pattern.fullmatch(name):
                found = match.groupdict()
                clip = Listed((name,), found["label"], found.get("group") or "")
                parts.setdefault(found.get("part") or "train", []).append(clip)
        if not any(parts.values()):
            raise ValueError(
                f"`pattern` must match names of clips, got {self.pattern.pattern!r}, which matches none of the "
                f"{len(names)} in {reader.folder}{': ' * bool(names)}{few(names)}"
            )
        if unknown := set(parts) - set(_PARTS):
            raise ValueError(f"`pattern` must find the parts {list(_PARTS)}, got {sorted(unknown)}")
        if "test" not in parts:
            parts["train"], parts["test"] = hold_out(parts["train"], self.test_share, self.seed)
        return parts

    def _read(self, part: str, source: str) -> list[Listed]:
        """The clips of a list, in the groups that their names tell."""
        hint = f"`parts` must name lists below `root`, got {source!r} for {part!r}"
        classes = self.chosen_classes
        spelt = {plain(name) for name in classes or ()}
        clips = []
        for where, line in lines_of(self.root / source, hint):
            name, label = named(where, line, lambda label: not spelt or plain(label) in spelt or label.isdecimal())
            if classes is not None and label.isdecimal() and label not in spelt:
                if int(label) >= len(classes):
                    raise ValueError(f"{where} must have a class from 0 to {len(classes) - 1}, got {label}")
                label = classes[int(label)]
            names = names_of(name, part)
            matches = (self.pattern.fullmatch(each) for each in names)
            group = next((match.groupdict().get("group") for match in matches if match), None)
            clips.append(Listed(names, label, group or ""))
        return clips
