"""Fetching data sets: from a server of the test's own, which misbehaves when asked to."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from embeddings.errors import DataError, InputError, Unavailable
from training.sources import DATASETS, get, read
from training.sources import download as download_module
from training.sources.download import Dataset


def packed(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


SMALL = packed(
    {
        "ml-latest-small/ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.0,1000000000\n",
        "ml-latest-small/movies.csv": "movieId,title,genres\n10,First (1994),Drama\n",
    }
)


class Server(BaseHTTPRequestHandler):
    archives: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = self.archives.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Server.archives, Server.asked = {"/ml-latest-small.zip": SMALL}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        monkeypatch.setattr(download_module, "GROUPLENS", f"http://127.0.0.1:{http.server_port}")
        yield Server
        http.shutdown()
        thread.join()


def test_a_data_set_is_fetched_once_and_can_be_read(server: type[Server], tmp_path: Path) -> None:
    folder = get("movielens-small", tmp_path / "with space")
    assert folder == tmp_path / "with space" / "ml-latest-small"
    assert read(folder).counts.kept == 2
    assert get("movielens-small", tmp_path / "with space", progress=True) == folder
    assert server.asked == ["/ml-latest-small.zip"]
    assert [path.name for path in folder.parent.iterdir()] == ["ml-latest-small"]


def test_the_published_hash_is_checked(server: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = hashlib.md5(SMALL).hexdigest()
    monkeypatch.setitem(DATASETS, "movielens-small", Dataset("ml-latest-small.zip", "ml-latest-small", "0" * 32))
    with pytest.raises(DataError, match="is not the published archive"):
        get("movielens-small", tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(DATASETS, "movielens-small", Dataset("ml-latest-small.zip", "ml-latest-small", right))
    assert get("movielens-small", tmp_path, progress=True).is_dir()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SMALL[: len(SMALL) // 2], "is damaged"),
        (b"<html>please log in</html>", "is damaged"),
        (packed({"elsewhere/ratings.csv": "x"}), "has no folder 'ml-latest-small'"),
        (packed({"../ratings.csv": "x"}), "wants to write outside of its folder"),
        (packed({"/tmp/ratings.csv": "x"}), "wants to write outside of its folder"),
    ],
)
def test_a_bad_archive_leaves_nothing_behind(server: type[Server], tmp_path: Path, content: bytes, words: str) -> None:
    server.archives["/ml-latest-small.zip"] = content
    with pytest.raises(DataError, match=words):
        get("movielens-small", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_and_no_such_file_are_told_apart(server: type[Server], tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot download http://127\.0\.0\.1:[0-9]+/ml-25m\.zip: 404"):
        get("movielens-25m", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        free = http.server_port
    monkeypatch.setattr(download_module, "GROUPLENS", f"http://127.0.0.1:{free}")
    with pytest.raises(Unavailable, match=r"no connection .*fetch the archive elsewhere"):
        get("movielens-small", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_data_set_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown data set 'movielens-2m'; did you mean 'movielens-.*movielens-small"):
        get("movielens-2m", tmp_path)
    assert set(DATASETS) >= {"movielens-small", "movielens-1m", "movielens-25m"}
