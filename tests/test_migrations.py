"""A store that an earlier version wrote opens with everything in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from embeddings.schema import Item
from serving.store import Store, migrations
from serving.store.database import Database
from serving.store.news import BACK, PRICE
from tests.test_store import START, event, fresh_url

FIRST = [
    "UPDATE numbers SET value = 1 WHERE name IN ('catalogue', 'documents')",
    "INSERT INTO events (event_id, user_id, item_id, event_type, timestamp, value, context)"
    f" VALUES ('e1', 'u1', 'i1', 'view', {int(START.timestamp() * 1e6)}, 2, '{{\"n\":1.0}}')",
    "INSERT INTO profiles VALUES ('u1', '{\"vip\":true}', 1, 1772323200000000, {blob})",
    "INSERT INTO items VALUES ('i1', 1, false, 'oak', '{item}'), ('i2', 1, true, '', '')",
    "INSERT INTO documents VALUES ('rule', 'r', '{\"a\": 1}', 1, 0, 'me')",
    "INSERT INTO audit VALUES (1, 0, 'me', 'create', 'rule', 'r', NULL, '{\"a\": 1}')",
]


def upgrade(connection: Connection, step: str) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    command.upgrade(config, step)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_news_of_prices_go_on_from_the_last_fall(kind: str, tmp_path: Path) -> None:
    at = int(START.timestamp() * 1e6)
    with fresh_url(kind, tmp_path) as url:
        database = Database(url)

        def as_it_was(connection: Connection) -> None:
            upgrade(connection, "0014")
            for values in (f"'tea', 'price_drop', {at}, 10, 7.5", f"'rum', 'back_in_stock', {at}, NULL, 5"):
                connection.execute(text(f"INSERT INTO news VALUES ({values})"))

        database.write(as_it_was)
        database.close()
        with Store.open(url) as store:
            (tea,) = store.catalogue.news.of(["tea", "rum"], PRICE, START)
            (rum,) = store.catalogue.news.of(["tea", "rum"], BACK, START)
    assert (tea.item_id, tea.at, tea.before) == ("tea", START, [(START.timestamp(), 10.0)])
    assert (rum.item_id, rum.at) == ("rum", START)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_store_without_checksums_gets_them(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item(item_id="i1", title="Oak")
    blob = b'[["i1","view",1772323200.0,2.0]]'
    with fresh_url(kind, tmp_path) as url:
        database = Database(url)

        def as_it_was(connection: Connection) -> None:
            upgrade(connection, "0001")
            literal = f"x'{blob.hex()}'" if kind == "sqlite" else f"'\\x{blob.hex()}'"
            for statement in FIRST:
                filled = statement.replace("{blob}", literal).replace("{item}", item.model_dump_json())
                connection.execute(text(filled.replace(":", "\\:")))

        database.write(as_it_was)
        database.close()
        with Store.open(url) as store:
            profile = store.profiles.get("u1")
            assert profile is not None
            assert (profile.attributes, profile.events, profile.history[0].value) == ({"vip": True}, 1, 2.0)
            (_, stored) = store.events.since(0)[0]
            assert (stored.event_id, stored.value, stored.context) == ("e1", 2.0, {"n": 1.0})
            assert store.catalogue.get("i1") == item
            assert store.catalogue.changes(0).deleted == ["i2"]
            assert store.documents.get("rule", "r") is not None
            assert len(store.documents.audit()) == 1
            assert [one.user_id for one in store.profiles.list().users] == ["u1"]
            assert store.events.append([event()]).accepted == 1
