# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does loading prepared videos cost beyond decoding the pictures?

pip install ".[video]"
python benchmarks/video_loading.py

Clips as `lightning-crmt prepare` leaves them, of noise: frames of 340 x 256 as JPEG and a spectrogram, three frames of
224 x 224 for a sample. An epoch of the loader of the training part, without workers, beside the bare reading of as many
frames and spectrograms with Pillow and numpy into normalised tensors, and of these into batches. Processor time of one
thread; they take turns.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import Row, benchmark_parser, in_turn, save

from lightning_crmt.data import AudioVideoFolder

SIZE = 224
MOMENTS = 3
BATCH = 8


def write_clips(root: Path, clips: int, frames: int) -> None:
    """Named class/clip."""
    from PIL import Image

    draws = np.random.default_rng(0)
    for clip in range(clips):
        name = f"{'ab'[clip % 2]}/{clip}"
        folder, sound = root / "frames" / name, root / "spectrograms" / f"{name}.npy"
        folder.mkdir(parents=True)
        sound.parent.mkdir(parents=True, exist_ok=True)
        for i in range(frames):
            coarse = Image.fromarray(draws.integers(0, 256, (32, 42, 3), dtype=np.uint8))
            coarse.resize((340, 256), Image.Resampling.BILINEAR).save(folder / f"{i + 1:06d}.jpg", quality=90)
        np.save(sound, draws.normal(size=(1000, 128)).astype(np.float16))


def bare(root: Path, clips: int) -> None:
    """Decode, scale, normalise, stack, and nothing else."""
    from PIL import Image

    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for batch in torch.arange(clips).split(BATCH):
        images, sounds = [], []
        for clip in batch.tolist():
            name, pixels = f"{'ab'[clip % 2]}/{clip}", []
            for i in range(MOMENTS):
                with Image.open(root / "frames" / name / f"{3 * i + 1:06d}.jpg") as image:
                    scaled = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                    pixels.append(torch.from_numpy(np.array(scaled)).permute(2, 0, 1))
            images.append(torch.stack(pixels).float().div_(255).sub_(mean).div_(std))
            sounds.append(torch.from_numpy(np.load(root / "spectrograms" / f"{name}.npy").astype(np.float32)))
        torch.stack(images)
        torch.stack(sounds)


def main() -> None:
    """Print a line."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--frames", type=int, default=10, help="of each clip")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    question = "Loading a prepared clip over decoding its pictures"
    if importlib.util.find_spec("PIL") is None:
        return save([Row(question, note="Pillow is not installed")], arguments.rows)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_clips(root, arguments.clips, arguments.frames)
        settings = {"size": SIZE, "moments": MOMENTS, "val_share": 0, "batch_size": BATCH, "num_workers": 0}
        data = AudioVideoFolder(str(root), pattern="(?P<label>[ab])/.*", **settings)
        data.setup("fit")
        loader = data.train_dataloader()
        clips = len(loader.dataset)
        works = {"bare": lambda: bare(root, clips), "loader": lambda: sum(1 for _ in loader)}
        turns = in_turn(works, arguments.repeats)
    ratio, each = turns.ratio("loader", "bare"), [turns.milliseconds(name) / clips for name in works]
    print(f"bare {each[0]:.1f} ms a clip, loader {each[1]:.1f} ms, ratio {ratio:.2f}")
    return save([Row(question, ratio, note=f"{1000 / each[1]:.0f} clips a second")], arguments.rows)


if __name__ == "__main__":
    main()
