# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared clips as data: what is listed, what is on the disk, what a sample is, and how it is drawn."""

import math
import os
import pickle
import re
import shutil
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from lightning.pytorch import LightningModule
from support import prepared
from support.prepared import CLASSES, write_clip, write_flow, write_frames, write_picture, write_spectrogram

from lightning_crmt.data import UCF101, KineticsSounds, VGGSound
from lightning_crmt.data.kinetics_sounds import CLASSES as ALL
from lightning_crmt.data.prepare.kinds import flow_levels
from lightning_crmt.data.read.flow import FlowReader
from lightning_crmt.data.read.frames import IMAGENET_MEAN, IMAGENET_STD, FrameReader
from lightning_crmt.data.read.looks import Look, middle, random_look, stack_at
from lightning_crmt.data.read.spectrogram import SpectrogramReader
from lightning_crmt.data.video.lists import Listed, hold_out, look_up
from lightning_crmt.data.video.module import ClipDataset, Draw, EpochDraws

FOLDERS = {"image": ("frames", ""), "audio": ("spectrograms", ".npy")}


def names_of(data, part):
    data.setup()
    return data.parts[part].clips


def grey_of(image):
    """The grey values, 0 to 255, of the left half of normalised frames."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image * std + mean) * 255)[..., : image.shape[-1] // 2 - 2].mean(dim=(-3, -2, -1))


# --- samples


def test_what_a_sample_is(tmp_path):
    data = prepared.kinetics_sounds(tmp_path, size=24)
    data.setup()
    inputs, target = data.parts["test"][0]
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "image": (3, 3, 24, 24),
        "audio": (1, 1024, 128),
    }
    assert all(value.dtype is torch.float32 for value in inputs.values())
    assert target.dtype is torch.long


@pytest.mark.parametrize("pattern", ["{:06d}.jpg", "frame_{:05d}.jpg"])
@pytest.mark.parametrize(("count", "shown"), [(1, [0, 0, 0]), (2, [0, 1, 1]), (3, [0, 1, 2]), (10, [1, 5, 8])])
def test_evaluation_shows_the_middles_of_three_segments(pattern, count, shown, tmp_path):
    write_frames(tmp_path / "clip", count, pattern=pattern)
    image = FrameReader(16, folder=tmp_path)("clip", middle(3))
    assert grey_of(image).tolist() == pytest.approx([20 * i for i in shown], abs=4)


def test_training_shows_any_frame_of_each_segment(tmp_path):
    write_frames(tmp_path / "clip", 9)
    seen = [set(), set(), set()]
    for i in range(60):
        image = FrameReader(8, folder=tmp_path)("clip", Look(random_look(3, (i,)).moments))
        for segment, grey in zip(seen, grey_of(image).tolist(), strict=True):
            segment.add(round(grey / 20))
    assert seen == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]


def test_audio_is_padded_with_zeros_then_scaled(tmp_path):
    rows = np.random.default_rng(0).normal(-4, 3, (300, 128)).astype(np.float16)
    np.save(tmp_path / "clip.npy", rows)
    audio = SpectrogramReader(-4.5, 5.1, folder=tmp_path)("clip", middle(3))
    for t, b in ((0, 0), (299, 127), (300, 0), (1023, 64)):
        energy = float(rows[t, b]) if t < 300 else 0.0
        assert audio[0, t, b].item() == pytest.approx((energy + 4.5) / (2 * 5.1), abs=1e-6)
    np.save(tmp_path / "long.npy", np.zeros((1100, 128), np.float16))
    assert SpectrogramReader(0.0, 1.0, folder=tmp_path)("long", middle(3)).shape == (1, 1024, 128)


def test_flow_is_a_stack_of_successive_pairs_in_pixels(tmp_path):
    write_flow(tmp_path / "clip", 20)
    flow = FlowReader(8, length=4, std=2.0, folder=tmp_path)("clip", middle(2))
    for moment, start in enumerate((3, 13)):
        for i in range(4):
            grey = 10 * (start + i)
            for channel, value in ((2 * i, grey), (2 * i + 1, 255 - grey)):
                pixels = (value - 128) / 127.5 * 20
                assert flow[moment, channel].mean().item() == pytest.approx(pixels / 2.0, abs=0.1)


def test_flow_is_read_with_the_bound_that_it_was_made_with(tmp_path):
    data = prepared.ucf101(tmp_path, flow_std=1.0)

    def greys(**settings):
        data = UCF101(str(tmp_path), size=16, flow_std=1.0, **settings)
        data.setup()
        part = data.parts["test"]
        return part[0][0]["flow"][0, 0].mean().item(), part.readers["flow"].bound

    unknown, bound = greys()
    assert bound == 20, "as for flow that others have made"
    (tmp_path / "flow.json").write_text('{"size": 256, "fps": null, "bound": 5, "method": "dis"}')
    assert greys() == (pytest.approx(unknown / 4, rel=1e-4), 5)
    (tmp_path / "flow" / "UCF-101").symlink_to(tmp_path / "flow")
    assert greys(flow="flow/UCF-101")[1] == 5
    (tmp_path / "flow" / "UCF-101.json").write_text('{"bound": 7.5}')
    assert greys(flow="flow/UCF-101/")[1] == 7.5
    for text in ("[]", "{}", '{"bound": 0}', '{"bound": NaN}', '{"bound": "5"}', "{"):
        (tmp_path / "flow.json").write_text(text)
        assert f"{tmp_path / 'flow.json'} must be what `lightning-crmt prepare` writes" in message_of(ValueError, data)


@pytest.mark.parametrize("bound", [5.0, 20.0])
def test_flow_that_is_written_is_read_again(bound, tmp_path):
    grey = np.arange(256, dtype=np.uint8)
    pixels = (grey - 128.0) / 127.5 * bound
    assert (flow_levels(pixels, bound) == grey).all()
    for axis in "uv":
        write_picture(tmp_path / "clip" / axis / "1.jpg", np.full((8, 8), flow_levels(np.zeros(1), bound)))
    assert (FlowReader(8, bound=bound, folder=tmp_path)("clip", middle(1)) == 0).all(), "what stands still is exactly 0"


def test_stacks_of_flow_stay_within_the_clip():
    for frames in (1, 5, 10, 11, 250):
        for moment in (0.0, 0.3, 0.5, 0.99999):
            stack = stack_at(moment, frames, 10)
            assert len(stack) == 10
            assert 0 <= min(stack) <= max(stack) < frames
            assert all(after - before == 1 or after == frames - 1 for before, after in pairwise(stack))


def test_mirroring_exchanges_sides_and_negates_sideways_motion_alone(tmp_path):
    write_frames(tmp_path / "clip", 3)
    ramp = np.tile(np.linspace(0, 255, 64), (48, 1))
    for i in range(10):
        for axis in "uv":
            write_picture(tmp_path / "clip" / axis / f"{i:06d}.jpg", ramp)
    plain, mirrored = (Look((0.5,), mirrored=each) for each in (False, True))
    image = FrameReader(16, folder=tmp_path)
    assert torch.equal(image("clip", plain), image("clip", mirrored).flip(-1))
    flow, turned = (
        FlowReader(16, folder=tmp_path)("clip", look).flip(-1 if look.mirrored else ()) for look in (plain, mirrored)
    )
    assert torch.allclose(turned[:, 0::2], -flow[:, 0::2], atol=1e-5)
    assert torch.allclose(turned[:, 1::2], flow[:, 1::2], atol=1e-5)


def test_one_crop_for_all_frames_and_for_flow(tmp_path):
    """Pictures whose brightness is their column: what is left tells where the crop was."""
    ramp = np.tile(np.arange(64) * 4, (48, 1))
    for i in range(10):
        write_picture(tmp_path / "clip" / f"{i:06d}.jpg", np.repeat(ramp[:, :, None], 3, axis=2))
        for axis in "uv":
            write_picture(tmp_path / "clip" / axis / f"{i:06d}.jpg", ramp)
    crops = set()
    for i in range(8):
        look = random_look(3, (i,))
        image, flow = (
            FrameReader(16, folder=tmp_path)("clip", look),
            FlowReader(16, std=1.0, folder=tmp_path)("clip", look),
        )
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        red = (image[0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
        vertical = flow[0, 1] / 20 * 127.5 + 128
        assert torch.allclose(red, vertical, atol=5)
        crops.add(round(red.mean().item()))
    assert len(crops) > 4


@pytest.mark.parametrize(("width", "height"), [(340, 256), (256, 340), (64, 640), (640, 64)])
def test_crops_have_the_areas_and_ratios_of_the_paper(width, height):
    areas, mirrored = [], 0
    for i in range(400):
        look = random_look(3, (i,))
        box = look.box(width, height)
        assert -1e-9 <= box.left < box.right <= 1 + 1e-9
        assert -1e-9 <= box.top < box.bottom <= 1 + 1e-9
        across, down = (box.right - box.left) * width, (box.bottom - box.top) * height
        assert 3 / 4 - 1e-6 <= across / down <= 4 / 3 + 1e-6
        areas.append(across * down / (width * height))
        mirrored += look.mirrored
    assert 160 < mirrored < 240
    if 0.5 < width / height < 2:
        assert min(areas) < 0.12
        assert max(areas) > 0.9
        assert all(0.08 <= area <= 1 for area in areas)


def test_a_large_picture_is_seen_alike_when_decoded_coarsely(tmp_path):
    rows, columns = np.mgrid[:960, :1280]
    waves = np.stack([127 + 120 * np.sin(rows / 150 + k) * np.cos(columns / 200) for k in range(3)], axis=-1)
    write_picture(tmp_path / "large" / "1.jpg", waves)
    write_picture(tmp_path / "small" / "1.jpg", waves[::4, ::4])
    look = Look((0.5,), crops=((0.3, 1.2, 0.7, 0.2),))
    large, small = (FrameReader(64, folder=tmp_path)(name, look) for name in ("large", "small"))
    assert (large - small).abs().mean() < 0.05


# --- draws


class Steps(LightningModule):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        self.seen.append((self.current_epoch, inputs["image"].clone(), target.clone()))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(make_trainer, data, epochs, ckpt_path=None):
    model, trainer = Steps(), make_trainer(max_epochs=epochs, limit_val_batches=0)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model.seen, trainer


def same(one, other):
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, other, strict=True)
    )


def test_batches_depend_on_seed_and_epoch_alone(tmp_path, make_trainer):
    prepared.kinetics_sounds(tmp_path, train=5)

    def data(workers, seed=0):
        return KineticsSounds(str(tmp_path), classes=CLASSES, size=16, batch_size=3, num_workers=workers, seed=seed)

    alone, trainer = fit(make_trainer, data(0), 4)
    assert same(alone, fit(make_trainer, data(0), 4)[0])
    assert same(alone, fit(make_trainer, data(2), 4)[0])
    assert not same(alone, fit(make_trainer, data(0, seed=1), 4)[0])
    by_epoch = [torch.cat([image for epoch, image, _ in alone if epoch == e]).flatten(1) for e in range(4)]
    pixels = torch.cat(by_epoch)
    assert len(pixels.unique(dim=0)) > len(pixels) - 4, "each epoch sees each clip in another way"

    # A run that stops after two epochs and goes on is the run that does not stop.
    _, trainer = fit(make_trainer, data(2), 2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    rest = [each for each in alone if each[0] >= 2]
    assert same(rest, fit(make_trainer, data(0), 4, tmp_path / "two.ckpt")[0])
    assert same(rest, fit(make_trainer, data(2), 4, tmp_path / "two.ckpt")[0])


def test_processes_share_an_epoch():
    shares = [EpochDraws(range(11), seed=3, processes=3, rank=rank) for rank in range(3)]
    orders = []
    for epoch in range(2):
        for share in shares:
            share.set_epoch(epoch)
        drawn = [draw for share in shares for draw in share]
        assert {draw.epoch for draw in drawn} == {epoch}
        assert {draw.sample for draw in drawn} == set(range(11))
        assert len(drawn) == 12, "one repeats to even out the processes"
        orders.append(drawn)
    assert [draw.sample for draw in orders[0]] != [draw.sample for draw in orders[1]]


def test_a_plain_index_is_not_augmented_and_a_draw_is_repeatable(tmp_path):
    data = prepared.kinetics_sounds(tmp_path, size=16)
    data.setup()
    part = data.parts["train"]
    plain = part[0][0]["image"]
    assert torch.equal(plain, part[0][0]["image"])
    draws = [part[Draw(0, epoch)][0]["image"] for epoch in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], plain)
    assert torch.equal(part[Draw(0, 0)][0]["audio"], part[0][0]["audio"])


def test_torch_and_numpy_random_states_are_left_alone(tmp_path):
    data = prepared.kinetics_sounds(tmp_path, size=16)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    data.setup()
    data.parts["train"][Draw(0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert (state == np.random.get_state()[1]).all()


class OpenFiles(ClipDataset):
    """Says with every sample how many files its process has open."""

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        files = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        ]
        mapped = Path("/proc/self/maps").read_text().count(".npy")
        held = sum(name.endswith((".jpg", ".npy")) for name in files) + mapped
        return inputs | {"open": torch.tensor([len(files), held])}, target


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux shows them")
@pytest.mark.parametrize("workers", [0, 2])
def test_no_file_stays_open(workers, tmp_path):
    data = prepared.ucf101(tmp_path, num_workers=workers, size=8)
    write = data.load
    data.load = lambda: {name: _counting(part) for name, part in write().items()}
    loader = data.train_dataloader()
    here, there = [], []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        counts = torch.cat([inputs["open"] for inputs, _ in loader])
        assert (counts[:, 1] == 0).all()
        # The least of an epoch: batches on their way to the main process are open files too.
        there.append(int(counts[:, 0].min()))
        here.append(len(os.listdir("/proc/self/fd")))
    assert here[0] == here[2]
    assert there[2] <= there[0] + 1


def _counting(part):
    return OpenFiles(part.clips, part.target, part.readers, part.moments, part.seed)


@pytest.mark.skipif(not os.path.isfile("/proc/self/maps"), reason="reads the maps of the process as Linux shows them")
def test_spectrograms_are_not_kept_mapped(tmp_path):
    write_spectrogram(tmp_path / "clip.npy")
    kept = [SpectrogramReader(0.0, 1.0, folder=tmp_path)("clip", middle(3)) for _ in range(5)]
    assert len(kept) == 5
    assert ".npy" not in Path("/proc/self/maps").read_text()


def test_parts_are_pickled_as_spawned_workers_need(tmp_path):
    data = prepared.ucf101(tmp_path, size=8)
    data.setup()
    part = data.parts["train"]
    copy = pickle.loads(pickle.dumps(part))
    for name in ("image", "flow"):
        assert torch.equal(copy[Draw(1, 2)][0][name], part[Draw(1, 2)][0][name])


# --- lists


def test_kinetics_sounds_has_31_classes():
    assert len(set(ALL)) == 31 == KineticsSounds("anywhere").num_classes
    assert list(ALL) == sorted(ALL)


def test_parts_in_folders(tmp_path):
    data = prepared.kinetics_sounds(tmp_path, val_share=0.25)
    assert {name: len(names_of(data, name)) for name in ("train", "val", "test")} == {"train": 6, "val": 2, "test": 4}
    assert data.parts["val"].target.bincount().tolist() == [1, 1]
    assert not set(names_of(data, "train")) & set(names_of(data, "val"))
    for name, label in zip(data.parts["train"].clips, data.parts["train"].target, strict=True):
        assert ("singing" in name) == (label == 0)
    other = KineticsSounds(str(tmp_path), classes=CLASSES, seed=5, val_share=0.5)
    again = KineticsSounds(str(tmp_path), classes=CLASSES, seed=5, val_share=0.5)
    assert names_of(other, "val") == names_of(again, "val")
    for name in CLASSES:
        write_clip(tmp_path, f"val/{name}/own")
    assert names_of(KineticsSounds(str(tmp_path), classes=CLASSES), "val") == [
        "val/playing guitar/own",
        "val/singing/own",
    ]
    assert (
        "val"
        not in prepared.KineticsSounds(
            str(tmp_path), classes=CLASSES, val_share=0, parts={"train": "train", "test": "val"}
        ).load()
    )


def test_lists_of_numbers_with_folders_by_part(tmp_path):
    for part in ("train", "val"):
        for label in range(31):
            for i in range(2):
                name = f"{part}-{label}_{i}"
                write_frames(tmp_path / f"{part}-frames-1fps" / name, 1, size=(8, 8), pattern="frame_{:05d}.jpg")
                write_spectrogram(tmp_path / f"{part}_spec" / f"{name}.npy", 2)
        lines = [f"{part}-{label}_{i} {label}\n" for label in range(31) for i in range(2)]
        (tmp_path / f"ks_{part}.txt").write_text("".join(lines))
    data = KineticsSounds(
        str(tmp_path),
        parts={"train": "ks_train.txt", "test": "ks_val.txt"},
        frames={"train": "train-frames-1fps", "test": "val-frames-1fps"},
        spectrograms={"train": "train_spec", "test": "val_spec"},
        size=8,
    )
    data.setup()
    assert {name: part.target.bincount().tolist() for name, part in data.parts.items()} == {
        "train": [1] * 31, "val": [1] * 31, "test": [2] * 31,
    }  # fmt: skip
    assert data.parts["val"][0][0]["image"].shape == (3, 3, 8, 8)


def test_lists_of_names_and_tables_of_kinetics(tmp_path):
    prepared.kinetics_sounds(tmp_path)
    (tmp_path / "some.txt").write_text(
        "train/singing/sing0_000001_000011 singing\n\ntrain/playing_guitar/play0_000001_000011 playing guitar\n"
    )
    rows = [
        f'"{label}",{clip},1.0,11,test\n'
        for label in ("singing", "playing guitar", "archery")
        for clip in ("sing1", "play1")
    ]
    (tmp_path / "test.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "".join(rows))
    data = KineticsSounds(str(tmp_path), classes=CLASSES, parts={"train": "some.txt", "test": "test.csv"}, val_share=0)
    with pytest.warns(UserWarning, match=r"2 of 4 in 'test' \(1 of 'singing', 1 of 'playing guitar'\)"):
        data.setup()
    assert data.parts["train"].target.tolist() == [0, 1]
    assert names_of(data, "test") == ["test/singing/sing1_000001_000011", "test/playing_guitar/play1_000001_000011"]
    assert data.missing["train"] == []
    assert len(data.missing["test"]) == 2


@pytest.mark.parametrize("suffix", ["", ".mp4", ".AVI"])
def test_names_in_lists_may_have_spaces_and_be_those_of_videos(suffix, tmp_path):
    names = {part: f"{part}/playing guitar/{part}_000001_000011" for part in ("train", "test")}
    for part, name in names.items():
        write_clip(tmp_path, name)
        (tmp_path / f"{part}.txt").write_text(f"{name}{suffix} 0\n")
    parts = {"train": "train.txt", "test": "test.txt"}

    def data():
        return KineticsSounds(str(tmp_path), parts=parts, classes=["playing guitar"], val_share=0)

    assert {part: names_of(data(), part) for part in names} == {part: [name] for part, name in names.items()}
    (tmp_path / "train.txt").write_text(f"flat{suffix} playing guitar\n")
    write_clip(tmp_path, "flat")
    assert names_of(data(), "train") == ["flat"]


@pytest.mark.parametrize(("suffix", "label"), [(".txt", "1"), (".csv", "1"), (".txt", "playing guitar")])
def test_lists_that_were_released_with_ogm_ge(suffix, label, tmp_path):
    """Lines of name, number and label; the clips alone or in a folder named like the part, as released with others."""
    for part in ("train", "test"):
        write_clip(tmp_path, f"-3Mwkq, 7TV4_{part}")
        write_clip(tmp_path, f"{part}/-w6sZ-nutlA_{part}")
        clips = f'"-3Mwkq, 7TV4_{part}"', f"-w6sZ-nutlA_{part}"
        (tmp_path / f"{part}{suffix}").write_text("".join(f"{clip},10,{label}\r\n" for clip in clips))
    parts = {part: f"{part}{suffix}" for part in ("train", "test")}
    data = KineticsSounds(str(tmp_path), parts=parts, classes=["singing", "playing guitar"], val_share=0)
    assert "have none" in message_of(ValueError, data), "singing"
    data = KineticsSounds(str(tmp_path), parts=parts, classes=["playing guitar"], val_share=0)
    if label == "1":
        assert f"train{suffix}:1 must have a class from 0 to 0, got 1" in message_of(ValueError, data)
    else:
        assert names_of(data, "train") == ["-3Mwkq, 7TV4_train", "train/-w6sZ-nutlA_train"]


@pytest.mark.parametrize("name", ["{id}_{start:06d}", "{id}_{start}", "{part}/{id}_{start:06d}", "{part}/{id}_{start}"])
def test_names_that_clips_of_vggsound_have_in_other_works(name, tmp_path):
    lines = []
    for part in ("train", "test"):
        for i in range(3):
            lines.append(f"{part}{i},{30 + i},singing,{part}\n")
            write_clip(tmp_path, name.format(id=f"{part}{i}", start=30 + i, part=part))
    (tmp_path / "vggsound.csv").write_text("".join(lines))
    data = VGGSound(str(tmp_path), val_share=0)
    assert names_of(data, "test") == [name.format(id=f"test{i}", start=30 + i, part="test") for i in range(3)]


def test_a_clip_that_is_called_as_its_video_is_found_too(tmp_path):
    for part in ("train", "test"):
        write_frames(tmp_path / "frames" / f"{part}.mp4", 1)
        write_spectrogram(tmp_path / "spectrograms" / f"{part}.mp4.npy")
        (tmp_path / f"{part}.txt").write_text(f"{part}.mp4 0\n")
    parts = {"train": "train.txt", "test": "test.txt"}
    assert names_of(KineticsSounds(str(tmp_path), parts=parts, classes=["a"], val_share=0), "train") == ["train.mp4"]


def test_classes_of_vggsound_are_sorted_and_may_hold_commas(tmp_path):
    data = prepared.vggsound(tmp_path)
    data.setup()
    assert data.classes == ["barking, loudly", "singing"]
    assert data.num_classes == 2
    assert names_of(data, "test") == ["testbar0_000030", "testbar1_000031", "testsin0_000030", "testsin1_000031"]
    fewer = VGGSound(str(tmp_path), classes=["singing"])
    fewer.setup()
    assert fewer.num_classes == 1
    assert {len(part) for part in fewer.parts.values()} == {3, 1, 2}
    with pytest.raises(
        ValueError,
        match=re.escape("`classes` must be different names among 'barking, loudly', 'singing', got ['sing']"),
    ):
        VGGSound(str(tmp_path), classes=["sing"]).setup()


def test_groups_of_ucf101_are_not_torn_apart(tmp_path):
    data = prepared.ucf101(tmp_path, groups=4, clips=3, val_share=0.5)
    data.setup()
    groups = {name: {clip[:-4] for clip in part.clips} for name, part in data.parts.items()}
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 12, "val": 12, "test": 6}
    assert not groups["train"] & groups["val"]
    assert {clip[-7:-4] for clip in data.parts["test"].clips} == {"g01"}
    assert data.parts["val"].target.bincount().tolist() == [6, 6]
    inputs, _ = data.parts["val"][0]
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "image": (3, 3, 32, 32),
        "flow": (3, 20, 32, 32),
    }


def test_a_split_takes_a_share_of_each_class_whatever_is_on_the_disk():
    names = ["a", "b", "c", "d", "e"]
    listed = [Listed((f"{name}-{i}",), name) for label, name in enumerate(names) for i in range(1, 40 * label + 2)]
    kept, held = hold_out(listed, 0.25, 1)
    assert sorted(kept + held) == sorted(listed)
    for label in names:
        total, out = (sum(clip.label == label for clip in clips) for clips in (listed, held))
        assert out == (0 if total == 1 else round(0.25 * total))
    assert hold_out(listed, 0.25, 1)[1] == held
    assert hold_out(listed, 0.25, 2)[1] != held


def test_what_is_held_out_of_a_class_does_not_depend_on_the_others(tmp_path):
    prepared.kinetics_sounds(tmp_path, train=12)

    def held(classes, label):
        data = KineticsSounds(str(tmp_path), classes=classes, val_share=0.25)
        data.setup()
        part = data.parts["val"]
        return [clip for clip, each in zip(part.clips, part.target, strict=True) if each == label]

    every = held(CLASSES, 1)
    assert len(every) == 3
    assert held(CLASSES[1:], 0) == held(CLASSES[::-1], 0) == held(["playing_guitar"], 0) == every
    assert [clip[-16] for clip in held(CLASSES, 0)] != [clip[-16] for clip in every], "each class has its own draw"


def test_looking_up_many_clips_opens_each_folder_once(tmp_path, monkeypatch):
    for i in range(3000):
        (tmp_path / "frames" / f"clip{i}").mkdir(parents=True)
    listing, calls = os.listdir, []
    monkeypatch.setattr(os, "listdir", lambda folder: calls.append(folder) or listing(folder))
    listed = [Listed((f"clip{i}",), "a") for i in range(4000)]
    start = time.monotonic()
    there, missing = look_up(listed, [FrameReader(8, folder=tmp_path / "frames")])
    assert (len(there), len(missing), len(calls)) == (3000, 1000, 1)
    assert time.monotonic() - start < 2


def test_missing_clips_are_left_out_with_one_warning(tmp_path):
    prepared.kinetics_sounds(tmp_path, train=5)
    shutil.rmtree(tmp_path / "frames" / "train" / "singing" / "sing0_000001_000011")
    (tmp_path / "spectrograms" / "test" / "playing_guitar" / "play1_000001_000011.npy").unlink()
    data = KineticsSounds(str(tmp_path), classes=CLASSES)
    with pytest.warns(
        UserWarning, match=r"left out: .*1 of 4 in 'test' \(1 of 'playing guitar'\); such as .*`missing`"
    ) as caught:
        data.setup()
    assert len(caught) == 1
    assert [name for names in data.missing.values() for name in names] == [
        "train/singing/sing0_000001_000011",
        "test/playing_guitar/play1_000001_000011",
    ]
    assert not {name for names in data.missing.values() for name in names} & {
        name for part in data.parts.values() for name in part.clips
    }


# --- what goes wrong


def message_of(error, data):
    with pytest.raises(error) as caught:
        data.setup()
    return str(caught.value)


def test_a_class_without_clips_is_named(tmp_path):
    prepared.kinetics_sounds(tmp_path)
    message = message_of(ValueError, KineticsSounds(str(tmp_path), classes=[*CLASSES, "tickling"]))
    assert "'train'; 1 of 3 have none" in message
    assert "'tickling' (0 listed)" in message
    assert f"{tmp_path / 'frames'}, {tmp_path / 'spectrograms'}" in message
    assert "29 of 31" in message_of(ValueError, KineticsSounds(str(tmp_path)))
    assert "for instance" not in message, "nothing was listed"


def test_a_clip_that_was_looked_for_is_named_and_a_folder_too_many(tmp_path):
    data = prepared.ucf101(tmp_path)
    shutil.rmtree(tmp_path / "flow" / "Bowling")
    message = message_of(ValueError, data)
    assert message.endswith(f"; for instance there is no {tmp_path / 'flow' / 'Bowling' / 'v_Bowling_g02_c01'}")
    for kind in ("frames", "flow"):
        (tmp_path / kind).rename(tmp_path / "UCF-101")
        (tmp_path / kind).mkdir()
        (tmp_path / "UCF-101").rename(tmp_path / kind / "UCF-101")
    message = message_of(ValueError, data)
    assert f"for instance there is no {tmp_path / 'frames' / 'Archery' / 'v_Archery_g02_c01'}; " in message
    assert f"{tmp_path / 'frames'} holds nothing but the folder 'UCF-101': if the videos were prepared one" in message


def test_what_is_not_there_is_named_with_how_to_make_it(tmp_path):
    message = message_of(FileNotFoundError, KineticsSounds(str(tmp_path / "none")))
    assert str(tmp_path / "none") in message
    assert f"lightning-crmt prepare VIDEOS {tmp_path / 'none'} --kinds frames spectrograms" in message
    (tmp_path / "frames").mkdir()
    assert f"{tmp_path / 'spectrograms'}" in message_of(FileNotFoundError, KineticsSounds(str(tmp_path)))
    (tmp_path / "spectrograms").mkdir()
    assert "there is no folder 'train' in" in message_of(FileNotFoundError, KineticsSounds(str(tmp_path)))
    parts = {"train": "a.txt", "test": "b.csv"}
    assert f"there is no list {tmp_path / 'a.txt'}" in message_of(
        FileNotFoundError, KineticsSounds(str(tmp_path), parts=parts)
    )
    assert "there is no list" in message_of(FileNotFoundError, VGGSound(str(tmp_path)))
    message = message_of(FileNotFoundError, UCF101(str(tmp_path)))
    assert f"{tmp_path / 'ucfTrainTestlist' / 'classInd.txt'}" in message
    (tmp_path / "frames").rename(tmp_path / "pictures")
    prepared.ucf101(tmp_path / "ucf")
    shutil.rmtree(tmp_path / "ucf" / "flow")
    assert "--kinds frames flow" in message_of(FileNotFoundError, UCF101(str(tmp_path / "ucf")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 0\nb\n", ":2 must be `name label`, got 'b'"),
        ("a,10,0\nb,10,31\n", ":2 must have a class from 0 to 30, got 31"),
        ("a,10,singing\nb,10,singin\n", ":2 must name one of the 31 classes 'blowing nose', "),
        ("a 0\n\0", " must be text in UTF-8, got bytes that are 0"),
        ("a 0\n\nb 31\n", ":3 must have a class from 0 to 30, got 31"),
        ("a singing\nb singin\n", ":2 must name one of the 31 classes 'blowing nose', "),
        ("a 0\nb singing\n", ":2 must have a label of the same kind"),
    ],
)
def test_malformed_lists_are_refused_by_line(text, words, tmp_path):
    prepared.kinetics_sounds(tmp_path)
    (tmp_path / "list.txt").write_text(text)
    message = message_of(ValueError, KineticsSounds(str(tmp_path), parts={"train": "list.txt", "test": "test"}))
    assert f"{tmp_path / 'list.txt'}{words}" in message


def test_a_list_with_another_class_is_told_which_were_chosen(tmp_path):
    prepared.kinetics_sounds(tmp_path)
    parts = {"train": "list.txt", "test": "test"}
    for text, words in (
        ("a archery", "name one of the 2 classes 'singing', 'playing guitar', got 'archery'"),
        ("a 2", "have a class from 0 to 1, got 2"),
    ):
        (tmp_path / "list.txt").write_text(text)
        message = message_of(ValueError, KineticsSounds(str(tmp_path), parts=parts, classes=CLASSES))
        assert message == f"{tmp_path / 'list.txt'}:1 must {words}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,youtube_id,start,end\n", ":1 must name the columns label, youtube_id, time_start, time_end; missing"),
        ("", ":1 must name the columns"),
        ("label,youtube_id,time_start,time_end\nsinging,abc,1\n", ":2 must have label, youtube_id"),
        ("label,youtube_id,time_start,time_end\n\nsinging,abc,one,2\n", ":3 must have label, youtube_id"),
    ],
)
def test_malformed_tables_of_kinetics_are_refused_by_line(text, words, tmp_path):
    prepared.kinetics_sounds(tmp_path)
    (tmp_path / "list.csv").write_text(text)
    assert words in message_of(ValueError, KineticsSounds(str(tmp_path), parts={"train": "list.csv", "test": "test"}))


@pytest.mark.parametrize("line", ["abc,1,singing", "abc,x,singing,train", "abc,1,singing,val", "abc,1,sing,ing,train"])
def test_malformed_lines_of_vggsound_are_refused(line, tmp_path):
    prepared.vggsound(tmp_path)
    with open(tmp_path / "vggsound.csv", "a") as file:
        file.write(line + "\n")
    message = message_of(ValueError, VGGSound(str(tmp_path)))
    assert f"vggsound.csv:13 must be `id,start,label,train` or `...,test`, got {line!r}" in message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("trainlist01.txt", "Archery/v_Archery_g02_c01.avi 2\n", ":1 must have the number 1 of 'Archery', got '2'"),
        ("trainlist01.txt", "Archery/v_Archery.avi 1\n", ":1 must be `class/v_class_g01_c01.avi`"),
        (
            "testlist01.txt",
            "Arching/v_Arching_g01_c01.avi\n",
            ":1 must name one of the 2 classes 'Archery', 'Bowling', got",
        ),
        ("classInd.txt", "1 Archery\n3 Bowling\n", ":2 must be `2 name`, got '3 Bowling'"),
        (
            "testlist01.txt",
            "Archery/v_Archery_g02_c01.avi\nBowling/v_Bowling_g01_c01.avi\n",
            "a clip must be in one part",
        ),
    ],
)
def test_malformed_lists_of_ucf101_are_refused_by_line(name, text, words, tmp_path):
    data = prepared.ucf101(tmp_path)
    (tmp_path / "ucfTrainTestlist" / name).write_text(text)
    assert words in message_of(ValueError, data)


def broken_jpeg(root):
    path = root / "frames" / "clip" / "000001.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return path


def no_jpeg(root):
    path = root / "frames" / "clip" / "000001.jpg"
    path.write_text("not a picture")
    return path


def empty_folder(root):
    shutil.rmtree(root / "frames" / "clip")
    (root / "frames" / "clip").mkdir()
    return root / "frames" / "clip"


def cut_short(root):
    path = root / "spectrograms" / "clip.npy"
    path.write_bytes(path.read_bytes()[:500])
    return path


def no_bytes(root):
    path = root / "spectrograms" / "clip.npy"
    path.write_bytes(b"")
    return path


def other_shape(root):
    np.save(root / "spectrograms" / "clip.npy", np.zeros((5, 64)))
    return root / "spectrograms" / "clip.npy"


def not_finite(root):
    np.save(root / "spectrograms" / "clip.npy", np.full((5, 128), math.nan))
    return root / "spectrograms" / "clip.npy"


def of_objects(root):
    np.save(root / "spectrograms" / "clip.npy", np.array([None]), allow_pickle=True)
    return root / "spectrograms" / "clip.npy"


BREAKS = [broken_jpeg, no_jpeg, empty_folder, cut_short, no_bytes, other_shape, not_finite, of_objects]


@pytest.mark.parametrize(("breaks", "workers"), [*((each, 0) for each in BREAKS), (broken_jpeg, 1)])
def test_a_broken_file_is_named(breaks, workers, tmp_path):
    write_clip(tmp_path, "clip", count=1)
    path = breaks(tmp_path)
    readers = {
        "image": FrameReader(8, folder=tmp_path / "frames"),
        "audio": SpectrogramReader(0.0, 1.0, folder=tmp_path / "spectrograms"),
    }
    loader = torch.utils.data.DataLoader(ClipDataset(["clip"], torch.tensor([0]), readers), num_workers=workers)
    with pytest.raises(RuntimeError, match=re.escape(str(path)) + r"[\s\S]*delete[\s\S]*prepare"):
        next(iter(loader))


def test_flow_with_a_lost_picture_is_refused(tmp_path):
    write_flow(tmp_path / "clip", 12)
    (tmp_path / "clip" / "v" / "000012.jpg").unlink()
    with pytest.raises(RuntimeError, match=r"as many pictures of u as of v, got 12 and 11"):
        FlowReader(8, folder=tmp_path)("clip", middle(3))


@pytest.mark.parametrize(("numbers", "lost"), [((1, 3), 2), ((1, 2, 4, 5), 3)])
def test_a_lost_picture_in_the_middle_is_noticed(numbers, lost, tmp_path):
    for number in numbers:
        write_picture(tmp_path / "clip" / f"{number:06d}.jpg", np.zeros((8, 8, 3)))
    message = f"every picture up to {numbers[-1]:06d}.jpg, got no {lost:06d}.jpg: delete the folder of its clip"
    with pytest.raises(RuntimeError, match=re.escape(f"{tmp_path / 'clip'} must hold {message}")):
        FrameReader(8, folder=tmp_path)("clip", middle(3))


@pytest.mark.parametrize(
    "names",
    [
        ["000000", "000001", "000002"],
        ["img7", "img8", "img9", "img10"],
        ["v2_0026", "v2_0051", "v2_0076"],
        ["frame_00000", "frame_00029", "frame_00059", "frame_00089"],
        ["000001", "frame_3"],
        ["0.04", "0.25", "0.30"],
        ["first", "middle", "z_last"],
        ["a_1", "b_7"],
        ["000005"],
    ],
)
def test_pictures_of_others_are_taken_in_order(names, tmp_path):
    for i, name in enumerate(names):
        write_picture(tmp_path / "clip" / f"{name}.jpg", np.full((8, 8, 3), 20 * i))
    shown = grey_of(FrameReader(8, folder=tmp_path)("clip", middle(len(names)))).tolist()
    assert shown == pytest.approx([20 * i for i in range(len(names))], abs=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowReader(8, bound=0.0), "`flow_bound` must be above 0, got 0.0"),
        (lambda: KineticsSounds("x", val_share=1.0), "`val_share` must be at least 0 and below 1, got 1.0"),
        (lambda: KineticsSounds("x", moments=0), "`moments` must be at least 1, got 0"),
        (lambda: KineticsSounds("x", size=0), "`size` must be at least 1, got 0"),
        (lambda: KineticsSounds("x", audio_std=0), "`audio_std` must be above 0, got 0"),
        (lambda: KineticsSounds("x", parts={"train": "train"}), "`parts` must say what 'train', 'test'"),
        (lambda: KineticsSounds("x", classes=["a", "a"]), "`classes` must be different names, got ['a', 'a']"),
        (lambda: UCF101("x", fold=4), "`fold` must be 1, 2 or 3, got 4"),
        (lambda: UCF101("x", flow_length=0), "`flow_length` must be at least 1, got 0"),
        (lambda: UCF101("x", flow_std=-1), "`flow_std` must be above 0, got -1"),
        (lambda: VGGSound("x", batch_size=0), "`batch_size` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_part_without_its_folder_is_named(tmp_path):
    prepared.kinetics_sounds(tmp_path)
    data = KineticsSounds(str(tmp_path), classes=CLASSES, frames={"train": "frames"})
    assert "must name one for 'test' of 'image'" in message_of(ValueError, data)


def test_without_pillow_it_is_said_what_to_install(tmp_path, monkeypatch):
    data = prepared.kinetics_sounds(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "lightning_crmt[video]"')):
        data.setup()
