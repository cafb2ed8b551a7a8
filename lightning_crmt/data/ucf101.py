# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""UCF101: human actions by what is seen and how it moves, from prepared videos."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from typing_extensions import override

from lightning_crmt.data.video.clips import Flow, Frames
from lightning_crmt.data.video.lists import Listed, restrict, ucf101_classes, ucf101_list
from lightning_crmt.data.video.module import ClipDataModule


class UCF101(ClipDataModule):
    r"""13,320 clips of 101 human actions: ``image`` and ``flow``.

    Soomro et al., 2012. The official lists say what is in ``train`` and ``test`` of each fold. Clips of one group are
    cut from one video, so for validation whole groups of the training list are held out.

    - ``image``, ``(moments, 3, size, size)``: frames from equal segments of the clip, of random moments in training and
      from the middles else; normalised as ImageNet. In training one random crop and one mirroring for frames and flow.
    - ``flow``, ``(moments, 2 flow_length, size, size)``: at each of these moments the displacements (u, v) between
      successive frames of the video around it (Simonyan and Zisserman, NeurIPS 2014), divided by ``flow_std``.

    Args:
        root: the folder that ``lightning-crmt prepare`` made of the videos, or one like it.
        lists: folder of ``classInd.txt``, ``trainlist01.txt`` and so on, below ``root``.
        fold: 1, 2 or 3.
        classes: names of some of the classes, to have fewer; all by default.
        frames: folder of the frames below ``root``.
        flow: folder of the flow below ``root``. The displacement that its grey values end at is read from the file of
            settings that ``lightning-crmt prepare`` writes beside it, ``flow.json``; it is 20 pixels where there is no
            such file, as for most flow that others have made.
        size: height and width of frames and flow.
        moments: frames, and stacks of flow, of a sample.
        flow_length: pairs (u, v) in a stack.
        flow_std: pixels of displacement that count as 1. The default is a guess at the deviation in moving scenes,
            where most of the picture stands still; that of your training part makes the variance 1.
        val_share: share of each class's groups for validation; 0 for none.
        batch_size: samples per batch and process.
        num_workers: worker processes per loader; pictures are decoded in them.
        seed: decides the split, the order of training samples and their augmentation.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a list or the settings of the flow are malformed,
            or a class has no clips.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.

    >>> data = UCF101("ucf101", fold=2, num_workers=8)
    """

    def __init__(
        self,
        root: str,
        lists: str = "ucfTrainTestlist",
        fold: int = 1,
        classes: Sequence[str] | None = None,
        frames: str = "frames",
        flow: str = "flow",
        size: int = 224,
        moments: int = 3,
        flow_length: int = 10,
        flow_std: float = 3.0,
        val_share: float = 0.1,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root=root,
            folders={"image": frames, "flow": flow},
            readers={"image": Frames(size), "flow": Flow(size, flow_length, flow_std)},
            moments=moments,
            val_share=val_share,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        if fold not in (1, 2, 3):
            raise ValueError(f"`fold` must be 1, 2 or 3, got {fold}")
        self.lists = self.root / lists
        self.fold = fold
        self.classes_given = classes

    @property
    def num_classes(self) -> int:
        """Number of classes; reads their list."""
        return len(self.classes_given or ucf101_classes(self.lists / "classInd.txt", _HINT))

    @override
    def load(self) -> dict[str, Dataset[Any]]:
        """Read the lists, split, and look for the files; and with what bound the flow was made."""
        reader, folder = self.readers["flow"], self.folders["flow"]
        assert isinstance(reader, Flow)
        assert isinstance(folder, str)
        reader.bound = _flow_bound(self.root, folder)
        return super().load()

    @override
    def listed(self) -> dict[str, list[Listed]]:
        classes = ucf101_classes(self.lists / "classInd.txt", _HINT)
        self.classes = list(self.classes_given or classes)
        names = {part: f"{part}list{self.fold:02d}.txt" for part in ("train", "test")}
        return {
            part: restrict(ucf101_list(self.lists / name, classes, _HINT), classes, self.classes)
            for part, name in names.items()
        }


def _flow_bound(root: Path, flow: str) -> float:
    """The bound in the settings beside the folder of the flow, or beside one that it lies in; 20 without any."""
    for folder in (Path(flow), *Path(flow).parents[:-1]):
        path = root / f"{folder}.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:
            raise ValueError(f"{path} must be what `lightning-crmt prepare` writes, got {error}") from error
        bound = settings.get("bound") if isinstance(settings, dict) else None
        if not (isinstance(bound, int | float) and math.isfinite(bound) and bound > 0):
            raise ValueError(f"{path} must be what `lightning-crmt prepare` writes, with a `bound`, got {settings}")
        return float(bound)
    return 20.0


_HINT = "`lists` must name the folder of the official lists below `root`, ucfTrainTestlist as they are released"
