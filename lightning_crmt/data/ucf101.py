# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""UCF101: human actions by appearance and motion, from prepared videos."""

from __future__ import annotations

import re
from typing import Any

from typing_extensions import override

from lightning_crmt.data.read.flow import FlowReader
from lightning_crmt.data.video.lists import Listed, class_index, lines_of
from lightning_crmt.data.video.module import ClipDataModule

_HINT = "`lists` must name the folder of the official lists below `root`, ucfTrainTestlist as they are released"


class UCF101(ClipDataModule):
    r"""13,320 clips of 101 human actions: ``image`` and ``flow``.

    Soomro et al., 2012. The official lists say what is in ``train`` and ``test`` of each fold. Clips of one group are
    cut from one video, so for validation whole groups of the training list are held out.

    - ``image``, ``(moments, 3, size, size)``: frames from equal segments of the clip, at random moments in training and
      in the middles otherwise; normalised as ImageNet. In training one random crop and one mirroring for frames and
      flow.
    - ``flow``, ``(moments, 2 flow_length, size, size)``: at each of these moments the displacements (u, v) between
      successive frames of the video around it (Simonyan and Zisserman, NeurIPS 2014), divided by ``flow_std``.

    Args:
        root: the folder that ``lightning-crmt prepare`` made of the videos, or one like it.
        lists: folder of ``classInd.txt``, ``trainlist01.txt`` and so on, below ``root``.
        fold: 1, 2 or 3.
        flow: folder of the flow below ``root``. The displacement at the ends of its grey scale is read from the file of
            settings that ``lightning-crmt prepare`` writes beside it, ``flow.json``; it is 20 pixels where there is no
            such file, as for most flow that others have made.
        flow_length: pairs (u, v) in a stack.
        flow_std: number of pixels by which displacements are divided. The default is a guess at the deviation in moving
            scenes, where most of the picture does not move; that of your training part makes the variance 1.
        **settings: ``frames``, ``val_share`` (of each class's groups), ``classes``, ``size``, ``moments``,
            ``batch_size``, ``num_workers`` and ``seed``, see ``ClipDataModule``.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a list or the settings of the flow are malformed,
            or a class has no clips.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.

    >>> data = UCF101("ucf101", fold=2, num_workers=8)
    """

    def __init__(
        self,
        root: str,
        *,
        lists: str = "ucfTrainTestlist",
        fold: int = 1,
        flow: str = "flow",
        flow_length: int = 10,
        flow_std: float = 3.0,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.folders["flow"], self.readers["flow"] = flow, FlowReader(self.size, flow_length, flow_std)
        if fold not in (1, 2, 3):
            raise ValueError(f"`fold` must be 1, 2 or 3, got {fold}")
        self.lists = self.root / lists
        self.fold = fold

    @override
    def all_classes(self) -> list[str]:
        """Names of the classes; reads their list, of lines ``number name``, numbered from 1."""
        classes: list[str] = []
        for where, line in lines_of(self.lists / "classInd.txt", _HINT):
            fields = line.split()
            if len(fields) != 2 or fields[0] != str(len(classes) + 1):
                raise ValueError(f"{where} must be `{len(classes) + 1} name`, got {line!r}")
            classes.append(fields[1])
        return classes

    @override
    def listed(self) -> dict[str, list[Listed]]:
        classes = self.all_classes()
        return {part: self._list(f"{part}list{self.fold:02d}.txt", classes) for part in ("train", "test")}

    def _list(self, name: str, classes: list[str]) -> list[Listed]:
        """Clips by lines ``class/v_class_g08_c01.avi``, in training lists with a number from 1 after it."""
        clips = []
        for where, line in lines_of(self.lists / name, _HINT):
            fields = line.split()
            match = re.fullmatch(r"((\w+)/v_\w+_(g\d+)_c\d+)(\.\w+)?", fields[0])
            if len(fields) > 2 or match is None:
                raise ValueError(f"{where} must be `class/v_class_g01_c01.avi` and perhaps a number, got {line!r}")
            clip, label, group = match[1], match[2], match[3]
            number = str(class_index(label, classes, where) + 1)
            if len(fields) == 2 and fields[1] != number:
                raise ValueError(f"{where} must have the number {number} of {label!r}, got {fields[1]!r}")
            clips.append(Listed((clip,), label, f"{label}/{label}_{group}"))
        return clips
