# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-modal data: one base module, and one file per data set."""

from lightning_crmt.data.arrays import ArrayData
from lightning_crmt.data.audio_video import AudioVideoFolder
from lightning_crmt.data.collate import collate_samples
from lightning_crmt.data.digits import SpokenWrittenDigits
from lightning_crmt.data.kinetics_sounds import KineticsSounds
from lightning_crmt.data.mfeat import UCIMultiFeatures
from lightning_crmt.data.module import EpochShuffle, MultimodalDataModule, MultimodalDataset
from lightning_crmt.data.prepare.prepare import prepare_command
from lightning_crmt.data.read.files import ArrayFile, FileReader, ImageFile, SpectrogramFile, WaveFile
from lightning_crmt.data.table import TableData
from lightning_crmt.data.ucf101 import UCF101
from lightning_crmt.data.vggsound import VGGSound
from lightning_crmt.data.watch import WatchMotion

__all__ = [
    "UCF101",
    "ArrayData",
    "ArrayFile",
    "AudioVideoFolder",
    "EpochShuffle",
    "FileReader",
    "ImageFile",
    "KineticsSounds",
    "MultimodalDataModule",
    "MultimodalDataset",
    "SpectrogramFile",
    "SpokenWrittenDigits",
    "TableData",
    "UCIMultiFeatures",
    "VGGSound",
    "WatchMotion",
    "WaveFile",
    "collate_samples",
    "prepare_command",
]
