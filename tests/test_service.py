"""The real service, as its users start it: events over HTTP, lists that follow, both topologies.

That Ctrl-C leaves no process and no port is checked at the end of every service that tests start (`conftest.started`).
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving import family
from serving.store import Store
from tests.conftest import ROOT, free_port, require, started, world_items, write_world

pytestmark = pytest.mark.slow


def groups(answer: dict[str, Any]) -> set[str]:
    return {one["item_id"].split("-")[0] for one in answer["items"]}


def recommend(url: str, user: str, **fields: Any) -> dict[str, Any]:
    reply = httpx2.post(f"{url}/v1/recommendations", json={"user_id": user, "k": 10} | fields, timeout=30)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def view(url: str, user: str, item_id: str) -> None:
    event = {"user_id": user, "item_id": item_id, "event_type": "view"}
    assert httpx2.post(f"{url}/v1/events", json=event, timeout=30).status_code == 202


def page(url: str, user: str) -> dict[str, Any]:
    """A whole page, with the items of its shelves below each other; none that others' events would fill."""
    names = ("continue", "because_you_watched", "for_you")
    slots = [{"id": name, "type": "shelf", "placement": name, "max_items": 5} for name in names]
    layout = {"slots": slots, "exploration": 0.0}
    assert httpx2.put(f"{url}/v1/layouts/start", json=layout, timeout=30).status_code == 200
    reply = httpx2.post(f"{url}/v1/pages", json={"user_id": user, "page": "start"}, timeout=30)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body | {"items": [item for slot in body["slots"] for item in slot["items"]]}


def walk(url: str) -> list[list[str]]:
    """What one person is offered while they look around, and after the policy changed."""
    user = uuid.uuid4().hex
    offered = [recommend(url, user)]
    for item_id in ("g2-3", "g1-4", "g1-7"):
        view(url, user, item_id)
        offered.append(recommend(url, user, context={"channel": "app"}))
    cheap = {"attribute": "price", "op": "le", "value": 12}
    offered.append(recommend(url, user, filter=cheap, exclude=["g1-2"]))
    rule = {"action": {"type": "pin", "position": 1}, "items": {"attribute": "item_id", "op": "eq", "value": "g3-9"}}
    assert httpx2.put(f"{url}/v1/rules/pin", json=rule, timeout=30).status_code == 200
    offered.append(recommend(url, user))
    assert httpx2.put(f"{url}/v1/items/new", json={"categories": ["group-1"]}, timeout=30).status_code == 200
    offered.append(recommend(url, user, k=60))
    assert httpx2.delete(f"{url}/v1/items/new", timeout=30).status_code == 204
    assert httpx2.delete(f"{url}/v1/rules/pin", timeout=30).status_code == 204
    offered.append(recommend(url, user, placement="because_you_watched"))
    offered.append(recommend(url, user, placement="because_you_watched", page=offered[-1]["next_page"]))
    offered.append(page(url, user))
    assert all(one["degraded"] == [] for one in offered)
    return [[item["item_id"] for item in one["items"]] for one in offered]


def test_the_next_list_follows_the_event(live_service: str) -> None:
    user = uuid.uuid4().hex
    for group in ("g3", "g0"):
        view(live_service, user, f"{group}-5")
        assert groups(recommend(live_service, user)) == {group}


def test_metrics_count_over_all_replicas(live_service: str) -> None:
    recommend(live_service, "someone")
    text = httpx2.get(f"{live_service}/metrics", timeout=30).text
    assert 'bespoke_requests_total{method="POST",route="/v1/recommendations",status="200"}' in text
    assert "ray_" not in text


def test_haproxy_listens_on_loopback_alone(live_service: str) -> None:
    port = int(live_service.rpartition(":")[2])
    proxies = [one for one in family.members(port) if one.name() == "haproxy"]
    assert proxies
    listening = {one.laddr.ip for proxy in proxies for one in proxy.net_connections() if one.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_the_doctor_finds_the_running_service_well(live_service: str, tmp_path: Path) -> None:
    port = live_service.rpartition(":")[2]
    command = [
        sys.executable,
        "-m",
        "bespoke",
        "doctor",
        "--json",
        "--port",
        port,
        "--store",
        f"sqlite:///{tmp_path}/s.db",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    found = {(one["subject"], one["level"]): one["text"] for one in json.loads(done.stdout)["findings"]}
    assert "answers" in found["port", "ok"]
    assert "of Ray listen everywhere and ask for its token" in found["reach", "ok"]
    assert done.returncode == 0, done.stdout


def test_the_chained_application_gives_the_same_answers(
    live_service: str, fast_profile: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 8000)) == 0
    require(not taken, "port 8000, which ray_config.yaml names")
    write_world(tmp_path / "releases")
    environment = fast_profile | {
        "BESPOKE_RELEASES": str(tmp_path / "releases"),
        "BESPOKE_STORE": f"sqlite:///{tmp_path / 'c.db'}",
    }
    serve = str(Path(sys.executable).parent / "serve")
    url = "http://127.0.0.1:8000"
    with started([serve, "run", "ray_config.yaml"], url, tmp_path / "serve.log", **environment):
        items = [item.model_dump(mode="json") for item in world_items()]
        assert httpx2.post(f"{url}/v1/items", json={"items": items}, timeout=30).status_code == 200
        assert httpx2.get(f"{url}/v1/info", timeout=30).json()["topology"] == "chained"
        chained = walk(url)
    with Store.open(environment["BESPOKE_STORE"]) as store:
        logged = store.decisions.between(datetime(2026, 1, 1, tzinfo=UTC), datetime.now(UTC)).decisions
    assert [one.items for one in logged] == chained, "every answer is in the log, the last ones written at the stop"
    assert all(one.sources for one in logged)
    fused = walk(live_service)
    assert chained == fused
    assert "g3-9" in fused[5][1:2]
    assert "new" in fused[6]
    assert not set(fused[7]) & set(fused[8])
    assert len(set(fused[9])) == len(fused[9]) > 7


def test_a_taken_port_is_one_sentence_and_nothing_starts(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        command = [sys.executable, "-m", "bespoke", "serve", "--port", str(port), "--releases", str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert run.returncode == 1
    assert f"port {port} is taken" in run.stderr
    assert "Traceback" not in run.stderr
