# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Fetch the Free Spoken Digit Dataset from where its authors publish it: all of it, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

#: The release with all six speakers, 16 MB.
ARCHIVE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"

_SECONDS = 60.0


def fetch_recordings(folder: str | Path, url: str = ARCHIVE) -> None:
    """Fetch the archive and unpack its recordings into ``folder / "recordings"``, unless something is there already.

    All is made ready beside the folder and then renamed, so that a folder with something in it is complete:
    whatever goes wrong on the way leaves nothing behind.

    Args:
        folder: where to; made, with its parents.
        url: a ``.zip`` with files ``recordings/*.wav`` anywhere in it.

    Raises:
        RuntimeError: if the archive cannot be had, or is broken, or holds no recordings.
    """
    folder = Path(folder)
    if _holds_something(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _download(url, work / "archive.zip")
        ready = work / "ready"
        _unpack(work / "archive.zip", ready / "recordings")
        try:
            if folder.exists():
                folder.rmdir()
            os.rename(ready, folder)
        except OSError:
            if not _holds_something(folder):  # else another process was faster
                raise
    except (OSError, HTTPException, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RuntimeError(
            f"could not fetch {url} into {folder}: {error}; without a network, put a copy of the Free Spoken Digit "
            "Dataset there"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _download(url: str, file: Path) -> None:
    with urllib.request.urlopen(url, timeout=_SECONDS) as response, file.open("wb") as out:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced else None
        with Tqdm(desc="recordings", total=total, unit="B", unit_scale=True, leave=False) as bar:
            while block := response.read(1 << 16):
                out.write(block)
                bar.update(len(block))
    # A connection that breaks off reads like one that ends.
    if total is not None and file.stat().st_size != total:
        raise OSError(f"broke off after {file.stat().st_size} of {total} bytes")


def _unpack(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        inside = [PurePosixPath(name) for name in opened.namelist()]
        wanted = [name for name in inside if name.suffix == ".wav" and name.parent.name == "recordings"]
        if not wanted:
            raise zipfile.BadZipFile("the archive holds no recordings/*.wav")
        folder.mkdir(parents=True)
        for name in wanted:
            # By its last part alone, so that no name leads out of the folder; reading checks the check sum.
            (folder / name.name).write_bytes(opened.read(str(name)))
