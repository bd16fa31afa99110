"""Keys: made and revoked in the store, by command, and what a service that needs them lets through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

import bespoke
from embeddings.errors import ConfigError, Conflict, InputError, NotFound, StoreError
from serving.api import access, create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.store import Keyring, Store, keys, tables
from tests.test_cli import call
from tests.test_store import store, url  # noqa: F401 - fixtures: both databases

Make = Callable[..., dict[str, str]]


def secret_of(text: str) -> str:
    return text.split("_")[2]


def test_a_key_is_stored_without_its_secret(store: Store) -> None:  # noqa: F811
    key, text = store.keys.create("shop", ["read", "events", "read"], per_minute=60, by="ann")
    assert (key.name, key.scopes, key.per_minute, key.revoked_at) == ("shop", ("read", "events"), 60, None)
    assert text.startswith(f"bk_{key.id}_")
    assert store.keys.list() == (key,)
    rows = store.database.rows(tables.KEYS.select()) + store.database.rows(tables.AUDIT.select())
    assert secret_of(text) not in repr(rows)
    assert key.digest not in repr(key)
    assert store.keys.create("shop", ["read"], per_minute=60, by="ann")[1] != text


@pytest.mark.parametrize(
    ("name", "scopes", "per_minute", "says"),
    [
        ("", ["read"], 1, "name: must have 1 to 128"),
        ("a\nb", ["read"], 1, "printable"),
        ("shop", ["raed"], 1, "unknown scope 'raed'; did you mean 'read'?"),
        ("shop", [], 1, "at least one is needed; known: read, events"),
        ("shop", ["read"], 0, "per_minute: must lie between 1"),
    ],
)
def test_what_a_key_may_be(
    store: Store,  # noqa: F811
    name: str,
    scopes: list[str],
    per_minute: int,
    says: str,
) -> None:
    with pytest.raises(InputError, match=says.replace("?", r"\?")):
        store.keys.create(name, scopes, per_minute=per_minute, by="ann")
    assert store.keys.list() == ()


def test_revoking_is_final_and_audited(store: Store) -> None:  # noqa: F811
    key, _ = store.keys.create("shop", ["read"], per_minute=60, by="ann")
    assert store.keys.revoke(key.id, by="bob").revoked_at is not None
    with pytest.raises(Conflict, match="was revoked on"):
        store.keys.revoke(key.id, by="bob")
    with pytest.raises(NotFound, match="bespoke keys list"):
        store.keys.revoke("nobody", by="bob")
    assert store.keys.active() == {}
    revoked, made = store.documents.audit(kind="key")
    assert (made.by, made.action, made.id, made.before) == ("ann", "create", key.id, None)
    assert made.after == {"name": "shop", "scopes": ["read"], "per_minute": 60, "revoked_at": None}
    assert (revoked.by, revoked.action, revoked.before) == ("bob", "update", made.after)
    assert revoked.after is not None
    assert revoked.after["revoked_at"] is not None


def test_a_ring_knows_the_keys_without_asking_the_database(store: Store) -> None:  # noqa: F811
    key, text = store.keys.create("shop", ["read"], per_minute=60, by="ann")
    ring = Keyring(store.keys)
    assert ring.find(text) is None
    ring.refresh()
    store.close()
    assert ring.find(text) == key
    for wrong in (
        "",
        "bk",
        "bk__",
        f"bk_{key.id}_",
        text[:-1],
        text + "0",
        f"xx{text[2:]}",
        f"bk_none_{secret_of(text)}",
    ):
        assert ring.find(wrong) is None
    assert ring.find(f"bk_{key.id}_\x00é\ud800") is None


def test_a_ring_follows_and_outlives_trouble(store: Store, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    ring = Keyring(store.keys)
    ring.start()
    key, text = store.keys.create("shop", ["read"], per_minute=60, by="ann")
    assert eventually(lambda: ring.find(text) is not None)
    store.keys.revoke(key.id, by="ann")
    assert eventually(lambda: ring.find(text) is None)
    _, kept = store.keys.create("shop", ["read"], per_minute=60, by="ann")
    assert eventually(lambda: ring.find(kept) is not None)
    store.close()
    time.sleep(4 * keys.FOLLOW_S)
    assert ring.find(kept) is not None
    ring.stop()
    assert [record.message for record in caplog.records] == [
        "could not read the keys; those that are known stay in force"
    ]


def test_a_damaged_row_is_told(store: Store) -> None:  # noqa: F811
    key, _ = store.keys.create("shop", ["read"], per_minute=60, by="ann")
    store.database.write(lambda c: c.execute(tables.KEYS.update().values(created_at=2**62)))
    with pytest.raises(StoreError, match=f"stored key '{key.id}' is damaged"):
        store.keys.list()


def eventually(true: Callable[[], bool], within_s: float = 1.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def engine(releases: Path, tmp_path: Path) -> Iterator[Engine]:
    one = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 'store.db'}", auth="on", replicas=2))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_api(engine), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture
def make(engine: Engine, client: TestClient) -> Make:
    """Make a key that is in force, and return the header that shows it."""

    def made(*scopes: str, per_minute: int = 6000) -> dict[str, str]:
        _, text = engine.store.keys.create("test", scopes, per_minute=per_minute, by="test")
        header = {"authorization": f"Bearer {text}"}
        assert eventually(lambda: client.get("/v1/nothing", headers=header).status_code != 401)
        return header

    return made


def operations(client: TestClient) -> list[tuple[str, str]]:
    document = client.get("/openapi.json").json()
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


def error(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    detail: dict[str, Any] = reply.json()["error"]
    return detail


def test_every_route_but_four_needs_a_key(client: TestClient) -> None:
    for method, path in operations(client):
        if path in ("/healthz", "/readyz"):
            assert client.request(method, path).status_code == 200
            continue
        reply = client.request(method, path.replace("{", "").replace("}", ""), json={})
        assert error(reply, 401)["code"] == "unauthorized"
        assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/nothing", "/nothing", "/docs/", "/console/../v1/info", "/./v1/info", "/HEALTHZ"):
        assert client.get(path).status_code == 401
    assert client.get("/console").status_code == 200
    assert client.get("/docs").status_code == 200
    assert client.get("/", follow_redirects=False).headers["location"] == "/console"


def test_every_route_stands_in_the_table_and_needs_one_of_its_scopes(client: TestClient, make: Make) -> None:
    headers = {scope: make(scope) for scope in keys.SCOPES}
    nouns = {path.removeprefix("/v1/").strip("/").split("/")[0] for _, path in operations(client)}
    assert nouns - {"healthz", "readyz"} == set(access.SCOPES)
    for method, path in operations(client):
        if path in access.OPEN:
            continue
        wanted = {*access.needed(method, path), "admin"}
        for scope, header in headers.items():
            reply = client.request(method, path.replace("{", "").replace("}", ""), json={}, headers=header)
            if scope in wanted:
                assert reply.status_code not in (401, 403), (method, path, scope)
            else:
                assert error(reply, 403)["message"].startswith("this needs a key with the scope '"), (
                    method,
                    path,
                    scope,
                )


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("POST", "/v1/recommendations", ("read", "browser")),
        ("POST", "/v1/events", ("events", "browser")),
        ("PUT", "/v1/items/{id}", ("catalogue",)),
        ("DELETE", "/v1/users/{id}", ("catalogue",)),
        ("PUT", "/v1/rules/{id}", ("policy",)),
        ("GET", "/v1/audit", ("policy",)),
        ("GET", "/v1/something-new", ("admin",)),
        ("POST", "/somewhere/else", ("admin",)),
        ("DELETE", "/v1/recommendations", ("read", "browser")),
    ],
)
def test_what_is_not_in_the_table_is_the_administrators(method: str, path: str, wanted: tuple[str, ...]) -> None:
    assert access.needed(method, path) == wanted


def test_the_document_says_what_is_needed(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert {"bearer": ["events"]} in document["paths"]["/v1/events"]["post"]["security"]
    assert {"401", "403", "429"} <= set(document["paths"]["/v1/events"]["post"]["responses"])
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_a_key_is_taken_from_either_header(client: TestClient, make: Make) -> None:
    text = make("read")["authorization"].removeprefix("Bearer ")
    for headers in (
        {"X-API-Key": text},
        {"Authorization": f"bearer  {text} "},
        {"Authorization": "Basic YTpi", "X-API-Key": text},
    ):
        assert client.get("/v1/info", headers=headers).status_code == 200
    for headers in ({"Authorization": text}, {"X-API-Key": f"Bearer {text}"}, {"X-API-Key": "ü".encode("latin-1")}):
        assert client.get("/v1/info", headers=headers).status_code == 401


def test_the_key_is_looked_at_before_the_body(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        yield b"{"
        pytest.fail("the body was read")

    headers = {"content-type": "application/json"}
    assert client.post("/v1/events", content=endless(), headers=headers).status_code == 401


def test_a_revoked_key_is_dead_within_a_second(client: TestClient, engine: Engine, make: Make) -> None:
    header = make("read")
    key_id = header["authorization"].split("_")[1]
    assert client.get("/v1/info", headers=header).status_code == 200
    engine.store.keys.revoke(key_id, by="test")
    assert eventually(lambda: client.get("/v1/info", headers=header).status_code == 401)


def test_each_key_has_a_limit_of_its_own(client: TestClient, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic()
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: clock))
    slow, quick = make("read", per_minute=24), make("read")  # two replicas: 0.2 a second here, two at once
    spent = client.get("/v1/info", headers=slow).status_code  # one was spent by `make`
    reply = client.get("/v1/info", headers=slow)
    assert (spent, error(reply, 429)["code"]) == (200, "rate_limited")
    assert reply.headers["retry-after"] == "5"
    assert client.get("/v1/info", headers=quick).status_code == 200
    clock += 5
    assert client.get("/v1/info", headers=slow).status_code == 200
    assert client.get("/v1/info", headers=slow).status_code == 429
    clock += 3600
    assert [client.get("/v1/info", headers=slow).status_code for _ in range(3)] == [200, 200, 429]


def test_changes_are_audited_under_the_key_that_made_them(client: TestClient, make: Make) -> None:
    header = make("policy")
    key_id = header["authorization"].split("_")[1]
    rule = {"action": {"type": "exclude"}, "items": {"attribute": "price", "op": "gt", "value": 5}}
    assert client.put("/v1/rules/cheap", json=rule, headers=header).status_code == 200
    assert client.delete("/v1/rules/cheap", headers=header).status_code == 204
    page = client.get("/v1/audit", headers=header, params={"limit": 2}).json()
    assert [(one["action"], one["kind"], one["id"], one["by"]) for one in page["entries"]] == [
        ("delete", "rule", "cheap", key_id),
        ("create", "rule", "cheap", key_id),
    ]
    rest = client.get("/v1/audit", headers=header, params={"below": page["next"]}).json()
    assert [(one["action"], one["kind"], one["by"]) for one in rest["entries"]] == [("create", "key", "test")]
    assert rest["next"] is None
    found = client.get("/v1/audit", headers=header, params={"kind": "rule", "id": "cheap"}).json()["entries"]
    assert len(found) == 2
    assert found[0]["before"]["action"] == {"type": "exclude"}


def test_pages_of_the_listed_origins_may_call(releases: Path, tmp_path: Path) -> None:
    origin = {"origin": "https://shop.example"}
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    for origins, allowed in (((), None), (("https://shop.example",), "https://shop.example")):
        engine = Engine(
            Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", auth="on", cors_origins=origins)
        )
        with TestClient(create_api(engine)) as client:
            preflight = client.options("/v1/events", headers=origin | ask)
            assert preflight.headers.get("access-control-allow-origin") == allowed
            assert preflight.status_code == (200 if allowed else 401)
            refused = client.post("/v1/events", json={}, headers=origin)
            assert refused.status_code == 401
            assert refused.headers.get("access-control-allow-origin") == allowed
            other = client.get("/healthz", headers={"origin": "https://other.example"})
            assert "access-control-allow-origin" not in other.headers
        engine.stop()


@pytest.mark.parametrize(
    ("given", "protected"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "127.8.0.1", "auth": "off"}, False),
        ({"auth": "on"}, True),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "shop.example"}, True),
        ({"host": "10.0.0.5", "auth": "auto"}, True),
    ],
)
def test_keys_are_off_on_loopback_only(given: dict[str, str], protected: bool) -> None:
    assert Settings.load(given, environment={}).protected is protected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "shop.example", ""])
def test_keys_cannot_be_off_where_others_can_ask(host: str) -> None:
    with pytest.raises(ConfigError, match="auth: may be off only on loopback"):
        Settings.load({"host": host, "auth": "off"}, environment={})


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # Ray's, when it is imported
def test_serve_run_is_held_to_the_address_it_really_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import deployments

    client = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0"))
    monkeypatch.setattr(deployments, "_get_global_client", lambda **_: client)
    given = Settings().model_dump(mode="json")
    assert deployments.listening(given).protected
    with pytest.raises(ConfigError, match=r"off only on loopback, and host is 0\.0\.0\.0"):
        deployments.listening(given | {"auth": "off"})
    client.http_config.host = "127.0.0.1"
    assert not deployments.listening(given | {"auth": "off"}).protected


def test_origins_are_listed_one_by_one() -> None:
    given = {"BESPOKE_CORS_ORIGINS": "https://a.example, http://localhost:3000"}
    assert Settings.load(environment=given).cors_origins == ("https://a.example", "http://localhost:3000")
    for wrong in ("*", "https://a.example/", "a.example", "https://*.example"):
        with pytest.raises(ConfigError, match="is not an origin"):
            Settings.load({"cors_origins": wrong}, environment={})


def test_a_misspelt_variable_is_an_error_and_others_are_not() -> None:
    with pytest.raises(ConfigError, match="unknown variable BESPOKE_STOER; did you mean BESPOKE_STORE"):
        Settings.load(environment={"BESPOKE_STOER": "sqlite:///x.db"})
    assert Settings.load(environment={"BESPOKE_API_KEY": "k", "BESPOKE_TEST_DATA": "d"}) == Settings.load(
        environment={}
    )


def test_commands_make_list_and_revoke(tmp_path: Path) -> None:
    where = ("--store", f"sqlite:///{tmp_path / 'store.db'}")
    code, text, note = call("keys", "create", "--name", "shop [b]", "--scope", "read", "--scope", "events", *where)
    assert (code, text.count("\n")) == (0, 1)
    key_id = text.split("_")[1]
    assert key_id in note
    assert secret_of(text.strip()) not in note
    code, table, _ = call("keys", "list", *where)
    assert key_id in table
    assert "shop [b]" in table
    assert secret_of(text.strip()) not in table
    assert call("keys", "revoke", key_id, *where)[0] == 0
    code, _, err = call("keys", "revoke", key_id, *where)
    assert (code, err.count("\n")) == (1, 1)
    assert "was revoked on" in err
    assert bespoke.COMMANDS["keys"][1] == "Make, list and revoke API keys."
