"""Fetching public data sets from the place where their owners publish them.

The MovieLens data sets come from GroupLens, whose terms of use travel with the archive (README). Nothing is redistributed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from embeddings.errors import DataError, Unavailable, unknown_name

GROUPLENS = "https://files.grouplens.org/datasets/movielens"


@dataclass(frozen=True)
class Dataset:
    """One archive: its name at GroupLens, the folder in it, and its MD5 as published beside it."""

    archive: str
    folder: str
    md5: str | None


DATASETS = {
    # `latest-small` is replaced from time to time, so no hash of it holds.
    "movielens-small": Dataset("ml-latest-small.zip", "ml-latest-small", None),
    "movielens-100k": Dataset("ml-100k.zip", "ml-100k", "0e33842e24a9c977be4e0107933c0723"),
    "movielens-1m": Dataset("ml-1m.zip", "ml-1m", "c4d9eecfca2ab87c1945afe126590906"),
    "movielens-10m": Dataset("ml-10m.zip", "ml-10M100K", "ce571fd55effeba0271552578f2648bd"),
    "movielens-20m": Dataset("ml-20m.zip", "ml-20m", "cd245b17a1ae2cc31bb14903e1204af3"),
    "movielens-25m": Dataset("ml-25m.zip", "ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada"),
    "movielens-32m": Dataset("ml-32m.zip", "ml-32m", "d472be332d4daa821edc399621853b57"),
}


def get(name: str, directory: Path | str, *, progress: bool = False) -> Path:
    """Download a data set into `directory` and unpack it there; returns its folder, which `read` understands.

    What is there already is not fetched again, and the folder appears only when it is complete. Raises `InputError` for an
    unknown name, `Unavailable` without a network, and `DataError` for an archive that is not the published one.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS, field="name")
    dataset, target = DATASETS[name], Path(directory)
    folder = target / dataset.folder
    if folder.is_dir():
        return folder
    url = f"{GROUPLENS}/{dataset.archive}"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as work:
        archive = _fetch(url, Path(work), dataset, progress=progress)
        _unpack(archive, Path(work) / "unpacked")
        unpacked = Path(work) / "unpacked" / dataset.folder
        if not unpacked.is_dir():
            raise DataError(f"the archive at {url} has no folder '{dataset.folder}'")
        os.replace(unpacked, folder)
    return folder


def _fetch(url: str, work: Path, dataset: Dataset, *, progress: bool) -> Path:
    # Both come with the extra `train`; whoever only reads files needs neither.
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # it would propose to write the hash of `latest-small` into the source
    with _Bar(dataset.archive, shown=progress) as bar:
        try:
            found = pooch.retrieve(
                url,
                known_hash=f"md5:{dataset.md5}" if dataset.md5 else None,
                fname=dataset.archive,
                path=work,
                downloader=pooch.HTTPDownloader(progressbar=bar, timeout=30),
            )
        except requests.HTTPError as error:
            raise Unavailable(f"cannot download {url}: {error}") from error
        except (requests.RequestException, OSError) as error:
            raise Unavailable(
                f"cannot download {url}: no connection ({type(error).__name__}). Without a network, fetch the archive "
                f"elsewhere, unpack it, and name its folder instead"
            ) from error
        except ValueError as error:
            raise DataError(f"what {url} sent is not the published archive: its MD5 is another") from error
    return Path(found)


def _unpack(archive: Path, into: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if PurePosixPath(entry.filename).is_absolute() or ".." in PurePosixPath(entry.filename).parts:
                    raise DataError(
                        f"the archive '{archive.name}' wants to write outside of its folder: {entry.filename}"
                    )
            packed.extractall(into)
    except zipfile.BadZipFile as error:
        shutil.rmtree(into, ignore_errors=True)
        raise DataError(f"the archive '{archive.name}' is damaged: {error}") from error


class _Bar:
    """What pooch expects of a progress bar, drawn by rich."""

    def __init__(self, name: str, *, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, transient=True, disable=not shown)
        self._task = self._progress.add_task(name)
        self._total = 0

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    @property
    def total(self) -> int:
        """Size of the download in bytes."""
        return self._total

    @total.setter
    def total(self, size: int) -> None:
        self._total = size
        self._progress.update(self._task, total=size)

    def update(self, size: int) -> None:
        """Some more bytes have come."""
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        """Pooch counts from the start once more when it is done."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Nothing is left open: leaving the context ends the drawing."""
