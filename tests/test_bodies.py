"""Hostile bodies: whatever arrives is answered with 4xx in the one shape, and memory stays flat."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api import bodies, create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.conftest import free_port, write_world

JSON = {"content-type": "application/json"}
LIMIT = 1 << 16


def wrong(body: bytes) -> str | None:
    """The sentence that refuses a body, None if it is sound."""
    try:
        bodies.parsed(body)
    except bodies.Malformed as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("bodies")
    write_world(folder / "releases")
    one = Engine(
        Settings(
            releases=folder / "releases",
            store=f"sqlite:///{folder / 'store.db'}",
            max_body_bytes=LIMIT,
            body_timeout_s=0.5,
        )
    )
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_api(engine), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    """The application behind a real HTTP server, for what only a socket can do."""
    chosen = free_port()
    server = uvicorn.Server(uvicorn.Config(create_api(engine), port=chosen, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield chosen
    server.should_exit = True
    thread.join(10)


def refused(reply: Any) -> dict[str, Any]:
    assert 400 <= reply.status_code < 500, reply.text
    detail: dict[str, Any] = reply.json()["error"]
    assert set(detail) == {"code", "message", "field"}
    return detail


HOSTILE = {
    "empty": b"",
    "blank": b" \n",
    "scalar": b"7",
    "array": b"[]",
    "truncated": b'{"user_id": "ann"',
    "trailing": b'{"user_id": "ann"} {"user_id": "bob"}',
    "NaN": b'{"user_id": "ann", "k": NaN}',
    "Infinity": b'{"user_id": "ann", "k": -Infinity}',
    "too large a double": b'{"user_id": "ann", "context": {"a": 1e999}}',
    "too many digits": b'{"user_id": "ann", "k": ' + b"9" * 5000 + b"}",
    "large integer": b'{"user_id": "ann", "context": {"a": ' + b"9" * 399 + b"}}",
    "NUL": b'{"user_id": "a\\u0000b"}',
    "raw NUL": b'{"user_id": "a\x00b"}',
    "invalid UTF-8": b'{"user_id": "\xff\xfe"}',
    "overlong UTF-8": b'{"user_id": "\xc0\xaf"}',
    "half a surrogate pair": b'{"user_id": "\\ud800"}',
    "half a surrogate pair in a name": b'{"user_id": "ann", "\\udfff": 1}',
    "UTF-16": '{"user_id": "ann"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"user_id": "ann"}',
    "repeated name": b'{"user_id": "ann", "user_id": "bob"}',
    "repeated name below": b'{"user_id": "ann", "context": {"a": 1, "a": 2}}',
    "deep arrays": b"[" * 30_000 + b"]" * 30_000,
    "deep and open": b"[" * 60_000,
    "deep objects": b'{"filter":' * 5_000 + b"1" + b"}" * 5_000,
    "deep filter": b'{"user_id": "ann", "filter": ' + b'{"not": ' * 40 + b"{}" + b"}" * 41,
    "filter a little too deep": b'{"user_id": "ann", "filter": ' + b'{"not": ' * 9 + b"{}" + b"}" * 10,
    "many names": json.dumps({"user_id": "ann", "context": {f"n{n}": n for n in range(3000)}}).encode(),
    "many excluded": json.dumps({"user_id": "ann", "exclude": ["i"] * 1001}).encode(),
    "too large": b'{"user_id": "' + b"x" * LIMIT + b'"}',
    "gzip": bytes.fromhex("1f8b08000000000000ff") + b"\x00" * 50,
    "form": b"user_id=ann&k=3",
    "prototype": b'{"user_id": "ann", "__proto__": {"k": 5}}',
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/events", "/v1/rules", "/v1/items", "/v1/rules/r"])
def test_hostile_bodies_are_refused(client: TestClient, name: str, path: str) -> None:
    method = "PUT" if path.endswith("/r") else "POST"
    refused(client.request(method, path, content=HOSTILE[name], headers=JSON))


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("NaN", 400, "unexpected character"),
        ("too large a double", 400, "number is infinity"),
        ("repeated name below", 400, 'the name "a" occurs more than once'),
        ("invalid UTF-8", 400, "not valid UTF-8"),
        ("half a surrogate pair", 400, "surrogate"),
        ("deep arrays", 400, "nested more than 32 levels deep"),
        ("deep filter", 400, "nested more than 32 levels deep"),
        ("filter a little too deep", 422, "nested more than 8 levels deep"),
        ("NUL", 422, "NUL"),
        ("many names", 422, "at most 32"),
        ("too large", 413, "larger than 65536 bytes"),
    ],
)
def test_the_refusal_says_what_was_wrong(client: TestClient, name: str, status: int, says: str) -> None:
    reply = client.post("/v1/recommendations", content=HOSTILE[name], headers=JSON)
    assert reply.status_code == status
    assert says in refused(reply)["message"]


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "text/json",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "application/json, text/html",
    ],
)
def test_only_json_is_taken(client: TestClient, kind: str) -> None:
    reply = client.post("/v1/recommendations", content=b'{"user_id": "ann"}', headers={"content-type": kind})
    assert (reply.status_code, refused(reply)["code"]) == (415, "unsupported_type")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_is_taken(client: TestClient, kind: str) -> None:
    reply = client.post("/v1/recommendations", content='{"user_id": "Ä😀"}'.encode(), headers={"content-type": kind})
    assert reply.status_code == 200


def test_honest_bodies_pass() -> None:
    tree: dict[str, Any] = {"attribute": "price", "op": "lt", "value": 5}
    for _ in range(7):
        tree = {"all": [tree, {"attribute": "a", "op": "eq", "value": "[{" * 20}]}
    for value in ({"items": tree, "when": tree}, "[" * 100, {}, {"a": "\\ud83d\\ude00", "n": -1.5e300, "i": 10**300}):
        assert wrong(json.dumps(value).encode()) is None
    assert wrong('{"a": "\\ud83d\\ude00 ä"}'.encode()) is None


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6))
def test_what_passes_is_what_every_parser_reads(value: Any) -> None:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if wrong(body) is None:
        assert json.loads(body.decode()) == value


NAMES = st.sampled_from(["a", "b", ":", '"', "\\", '\\":', "{", ""])
PAIRS = st.recursive(
    NAMES | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=3).map(tuple),
)
"""Lists are arrays; tuples of pairs are objects in which a name may be repeated."""


def written(value: Any) -> str:
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{json.dumps(name)} : {written(one)}" for name, one in value) + "}"
    return "[" + ",".join(map(written, value)) + "]" if isinstance(value, list) else json.dumps(value)


def repeats(value: Any) -> bool:
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(repeats(one) for _, one in value)
    return isinstance(value, list) and any(map(repeats, value))


@given(PAIRS)
@settings(max_examples=300)
def test_repeated_names_are_found_wherever_they_are(value: Any) -> None:
    assert ("more than once" in (wrong(written(value).encode()) or "")) == repeats(value)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0d8NaIn1e9-. ', max_size=200).map(str.encode))
def test_no_bytes_break_the_check(body: bytes) -> None:
    assert wrong(body) is None or json.dumps(wrong(body))


def test_the_depth_is_counted_exactly() -> None:
    assert wrong(b"[" * bodies.MAX_DEPTH + b"]" * bodies.MAX_DEPTH) is None
    deeper = bodies.MAX_DEPTH + 1
    assert "nested" in (wrong(b"[" * deeper + b"]" * deeper) or "")


def speak(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send raw bytes and read until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # the server has heard enough
                break
            time.sleep(pause_s)
        answer = b""
        connection.settimeout(2)
        try:
            while more := connection.recv(65_536):
                answer += more
                head, _, body = answer.partition(b"\r\n\r\n")
                if b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n":
                    break
        except OSError:
            pass
        return answer


def head(length: bytes = b"", path: bytes = b"/v1/events") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"host: x", b"content-type: application/json"]
    return b"\r\n".join([*lines, *([b"content-length: " + length] if length else []), b"", b""])


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def test_a_body_that_trickles_in_is_given_up(port: int) -> None:
    started = time.monotonic()
    answer = speak(port, head(b"1000") + b'{"a', *[b"a"] * 40, pause_s=0.03)
    assert status(answer) == 408
    assert b"did not arrive within 0.5 s" in answer
    assert time.monotonic() - started < 4


def test_a_body_that_never_comes_is_given_up(port: int) -> None:
    assert status(speak(port, head(b"1000"))) == 408


@pytest.mark.parametrize(
    ("length", "body", "wanted"),
    [
        (b"5", b'{"user_id": "ann", "item_id": "i"}', {400}),
        (b"-1", b"{}", {400}),
        (b"1e3", b"{}", {400}),
        (b"0", b"{}", {400, 422}),
        (b"99999999999999999999", b"{}", {400, 413}),
        (b"70000", b"{}", {413}),
    ],
)
def test_a_lying_content_length(port: int, length: bytes, body: bytes, wanted: set[int]) -> None:
    assert status(speak(port, head(length) + body)) in wanted


def test_what_the_server_lets_through_the_guard_compares(client: TestClient) -> None:
    for length in ("5", "70", "-1", "x", "١"):
        headers = JSON | {"content-length": length.encode()}
        reply = client.post("/v1/events", content=b'{"user_id": "ann", "item_id": "i"}', headers=headers)
        assert (reply.status_code, refused(reply)["code"]) == (400, "malformed_request"), length


def test_the_service_is_unimpressed(port: int, client: TestClient) -> None:
    for _ in range(20):  # gone before the body was there
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(head(b"1000") + b"{")
    assert status(speak(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP\r\n\r\n")) == 400
    assert status(speak(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")) == 200


def test_memory_stays_flat(port: int, client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    flood = head().replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"[" * 65_536 + b"\r\n"
    client.post("/v1/events", content=HOSTILE["deep arrays"], headers=JSON)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(3):
        speak(port, flood, *[chunk] * 400)  # 26 MB for a limit of 64 KB
        for name in ("deep arrays", "deep objects", "too large", "many names"):
            client.post("/v1/events", content=HOSTILE[name], headers=JSON)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 8 * 1 << 20
    assert left - before < 1 << 20
