"""Experiments: who is in which arm, what it changes in both topologies, and which documents are refused."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from embeddings.errors import InputError
from embeddings.releases import point_to
from embeddings.schema import User
from serving.decisions.deciding import DecisionQuery
from serving.pipeline.releases import RELEASE
from serving.policy.compiled import Policy
from serving.policy.experiments import HOLDOUT, Experiment, parse_experiment
from serving.policy.kinds import References
from serving.policy.layers import EXPERIMENTS
from serving.replica.engine import Engine
from serving.request.assignment import arm_of, assigned, place
from serving.request.query import Query
from tests.conftest import write_world
from tests.test_api import client, error, recommend  # noqa: F401 - a fixture
from tests.test_layouts import open_page, shelves
from tests.test_pipeline import ask, do, ids
from tests.test_placements import patient as patient

PEOPLE = [f"u{n}" for n in range(4000)]
CHEAP = {"attribute": "price", "op": "lt", "value": 10}
ARMS = [{"id": "as_is"}, {"id": "dear", "placements": {"home": {"values": {"price": 1000.0}}}}]


def body(name: str = "dial", **fields: Any) -> dict[str, Any]:
    return {"id": name, "state": "running", "arms": ARMS} | fields


def experiment(name: str = "dial", **fields: Any) -> Experiment:
    return parse_experiment(body(name, **fields), references=References())


def compiled(*bodies: dict[str, Any], rules: tuple[dict[str, Any], ...] = ()) -> Policy:
    content = {"id": "c", "variants": [{"id": "x", "payload": {"text": "x"}}]}
    documents = {"experiment": list(bodies), "rule": list(rules), "content": [content]}
    return Policy.compile(documents, version=1, item_attributes=["brand", "rank"])


def put(engine: Engine, name: str = "dial", **fields: Any) -> None:
    engine.store.documents.put("experiment", name, body(name, **fields), by="test")
    engine.take_changes()


def someone_in(engine: Engine, name: str, arm: str) -> str:
    found = engine.policy.of(EXPERIMENTS).by_id[name]
    return next(person for person in PEOPLE if arm_of(found, person) == arm)


def test_shares_are_as_they_were_asked_for() -> None:
    one = experiment(
        arms=[ARMS[0] | {"weight": 0.2}, ARMS[1] | {"weight": 0.5}, {"id": "third", "weight": 0.3}],
        slice={"start": 0.25, "end": 0.75},
        traffic=0.8,
        holdout=0.1,
    )
    counts = Counter(arm_of(one, person) for person in PEOPLE)
    inside = 0.9 * 0.5 * 0.8
    for arm, share in ((HOLDOUT, 0.1), ("as_is", inside * 0.2), ("dear", inside * 0.5), ("third", inside * 0.3)):
        deviation = math.sqrt(len(PEOPLE) * share * (1 - share))
        assert abs(counts[arm] - len(PEOPLE) * share) < 4 * deviation, arm


def test_more_traffic_moves_nobody_and_the_same_people_are_held_out_everywhere() -> None:
    few, many = experiment(traffic=0.3, holdout=0.1), experiment(traffic=0.9, holdout=0.1)
    before = {person: arm for person in PEOPLE if (arm := arm_of(few, person)) is not None}
    assert {person: arm_of(many, person) for person in before} == before
    other = experiment("other", layer="another", holdout=0.2)
    held = {person for person in PEOPLE if arm_of(few, person) == HOLDOUT}
    assert held < {person for person in PEOPLE if arm_of(other, person) == HOLDOUT}


def test_a_layer_is_shared_out_and_layers_are_independent() -> None:
    first = experiment("first", slice={"start": 0.0, "end": 0.5})
    second = experiment("second", slice={"start": 0.5, "end": 1.0})
    other = experiment("third", layer="other")
    ins = {person: (arm_of(first, person), arm_of(second, person)) for person in PEOPLE}
    assert all((a is None) != (b is None) for a, b in ins.values())
    pairs = Counter((arm_of(first, person), arm_of(other, person)) for person in PEOPLE)
    for cell in [(a, b) for a in ("as_is", "dear") for b in ("as_is", "dear")]:
        assert abs(pairs[cell] - len(PEOPLE) / 8) < 4 * math.sqrt(len(PEOPLE) / 8)


@given(st.text(max_size=200), st.text(max_size=200), st.sampled_from(["layer", "arm", HOLDOUT]))
def test_a_place_is_within_bounds_and_stays(person: str, name: str, drawn: str) -> None:
    assert 0 <= place(person, drawn, name) < 1
    assert place(person, drawn, name) == place(person, drawn, name)


def test_long_names_do_not_draw_alike() -> None:
    one, other = (experiment("x" * 100 + end) for end in "ab")
    assert any(arm_of(one, person) != arm_of(other, person) for person in PEOPLE[:50])


def test_a_place_is_the_same_in_every_version() -> None:
    """What is drawn is part of the experiments that run: another hash would move everybody."""
    assert [round(place(person, "arm", "dial"), 6) for person in ("ann", "eve", "ödön")] == [
        0.916921,
        0.133866,
        0.407507,
    ]


def test_who_does_not_fit_or_comes_at_another_time_takes_no_part() -> None:
    one = experiment(
        when={"attribute": "user.country", "op": "eq", "value": "DE"},
        starts_at="2026-01-01T00:00:00Z",
        ends_at="2026-02-01T00:00:00Z",
    )
    inside, after = datetime(2026, 1, 15, tzinfo=UTC).timestamp(), datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    here = {"user.country": "DE"}
    assert assigned((one,), "ann", lambda: here, inside)
    assert not assigned((one,), "ann", lambda: here, after)
    assert not assigned((one,), "ann", lambda: {"user.country": "FR"}, inside)
    stopped = one.without("as_is", "it lost").without("dear", "it lost too")
    assert not assigned((stopped,), "ann", lambda: here, inside)


def test_an_arm_changes_its_placement_and_nothing_else(patient: Engine) -> None:
    put(patient, primary="revenue")
    for arm in ("as_is", "dear"):
        person = someone_in(patient, "dial", arm)
        do(patient, "g2-3", user=person)
        home, elsewhere = (ask(patient, user_id=person, placement=name) for name in ("home", "plain"))
        assert (home.experiment, elsewhere.experiment) == ({"dial": arm}, {})
        assert (ids(home) == ids(elsewhere)) == (arm == "as_is")
        if arm == "dear":
            assert ids(home)[:3] == ["g2-24", "g2-23", "g2-22"]
    assert patient.effects.flush()
    logged = patient.store.decisions.get(home.recommendation_id)
    assert logged is not None
    assert logged.arms == {"dial": "dear"}


def test_an_arm_switches_rules_on_and_off(patient: Engine) -> None:
    rules = {
        "standing": {"action": {"type": "exclude"}, "items": CHEAP},
        "tested": {
            "action": {"type": "pin", "position": 0},
            "items": {"attribute": "item_id", "op": "eq", "value": "g3-9"},
        },
    }
    for name, rule in rules.items():
        document = {"id": name, "enabled": name == "standing"} | rule
        patient.store.documents.put("rule", name, document, by="test")
    put(patient, arms=[{"id": "as_is"}, {"id": "swap", "rules_on": ["tested"], "rules_off": ["standing"]}])
    for arm in ("as_is", "swap"):
        person = someone_in(patient, "dial", arm)
        do(patient, "g2-3", user=person)
        answer = ask(patient, user_id=person, k=20)
        assert answer.experiment == {"dial": arm}, "rules for all placements make every list part of it"
        cheap = [name for name in ids(answer) if int(name.split("-")[1]) < 9]
        assert (ids(answer)[0] == "g3-9", bool(cheap)) == ((False, False) if arm == "as_is" else (True, True))


def test_an_arm_changes_the_layout_of_a_page_and_placements_on_it(patient: Engine) -> None:
    for name, placement in (("start", "trending"), ("other", "home")):
        slot = {"id": name, "type": "shelf", "placement": placement, "max_items": 5}
        patient.store.documents.put("layout", name, {"id": name, "slots": [slot], "exploration": 0.0}, by="test")
    put(patient)
    put(patient, "page", layer="pages", arms=[{"id": "old"}, {"id": "new", "layouts": {"start": "other"}}])
    everybody = engine_people(patient, {"page": "new", "dial": "dear"})
    answer = open_page(patient, page="start", user_id=everybody)
    assert (answer.page, answer.experiment) == ("start", {"page": "new", "dial": "dear"})
    assert list(shelves(answer)) == ["other"]
    before = open_page(patient, page="start", user_id=engine_people(patient, {"page": "old", "dial": "dear"}))
    assert (list(shelves(before)), before.experiment) == (["start"], {"page": "old"})


def engine_people(engine: Engine, arms: dict[str, str]) -> str:
    """Somebody who is in all of these arms."""
    by_id = engine.policy.of(EXPERIMENTS).by_id
    return next(one for one in PEOPLE if all(arm_of(by_id[name], one) == arm for name, arm in arms.items()))


def test_an_arm_weighs_the_variants_of_a_content_on_pages_and_alone(patient: Engine) -> None:
    variants = [{"id": name, "payload": {"text": name}} for name in ("short", "long", "odd")]
    hero = {"id": "hero", "variants": variants, "choice": "weights"}
    slots = [
        {"id": "top", "type": "content", "content": "hero"},
        {"id": "list", "type": "shelf", "placement": "trending"},
    ]
    for kind, document in (("content", hero), ("layout", {"id": "start", "slots": slots, "exploration": 0.0})):
        patient.store.documents.put(kind, document["id"], document, by="test")
    put(patient, "texts", arms=[{"id": "as_is"}, {"id": "one", "contents": {"hero": {"odd": 1.0}}}])
    people = PEOPLE[:40]
    shown: dict[str, set[str | None]] = {"as_is": set(), "one": set()}
    for person in people:
        query = DecisionQuery(contents=["hero"], user_id=person, now=datetime.now(UTC))
        (decided,), _ = asyncio.run(patient.decide(query))
        shown[decided.arms["texts"]].add(decided.variant)
    assert shown == {"as_is": {"short", "long", "odd"}, "one": {"odd"}}
    assert patient.effects.flush()
    logged = patient.store.decisions.get(decided.recommendation_id)
    assert logged is not None
    assert logged.arms == dict(decided.arms)
    page = open_page(patient, page="start", user_id=people[-1])
    assert (page.experiment, page.slots[0].content is not None) == (dict(decided.arms), True)
    assert ask(patient, user_id=people[-1]).experiment == {}, "a list is no part of it"


def test_an_arm_is_answered_by_another_release(patient: Engine, releases: Path) -> None:
    put(patient, "model", arms=[{"id": "as_is"}, {"id": "next", "release": "world-2"}])
    patient.refresh()
    person, other = someone_in(patient, "model", "next"), someone_in(patient, "model", "as_is")
    for one in (person, other):
        before = ask(patient, user_id=one)
        assert (before.model_version, before.experiment) == ("world-1", {}), "nobody takes part before it is there"
    write_world(releases, "world-2")
    point_to(releases, "world-1")
    patient.refresh()
    for one, model, arm in ((person, "world-2", "next"), (other, "world-1", "as_is")):
        do(patient, "g2-3", user=one)
        answer = ask(patient, user_id=one)
        assert (answer.model_version, answer.experiment) == (model, {"model": arm})
        assert {name[:2] for name in ids(answer)} == {"g2"}
        assert answer.degraded == ()
        page = open_page(patient, user_id=one)
        assert (page.model_version, page.experiment, page.degraded) == (model, {"model": arm}, ())
    patient.store.documents.put(RELEASE, "world-2", {"state": "withdrawn", "reason": "bad"}, by="test")
    patient.refresh()
    assert ask(patient, user_id=person).model_version == "world-1"


def test_an_alias_is_in_the_arm_of_its_person_on_every_channel(patient: Engine) -> None:
    put(patient)
    person = someone_in(patient, "dial", "dear")
    alias = someone_in(patient, "dial", "as_is")
    assert ask(patient, user_id=alias, placement="home").experiment == {"dial": "as_is"}
    patient.store.aliases.link(alias, person)
    for channel in ("web", "app", "email"):
        answer = ask(patient, user_id=alias, placement="home", context={"channel": channel})
        assert answer.experiment == {"dial": "dear"}
    mail = Query(k=5, now=datetime.now(UTC), user_id=alias, placement="home")
    written = asyncio.run(patient.compose(mail, patient.store.profiles.read(alias).profile))
    assert written.answer.experiment == {"dial": "dear"}, "what is written ahead is of the same arm"


def test_who_does_not_want_to_be_analysed_or_has_no_id_takes_no_part(patient: Engine) -> None:
    put(patient)
    person = someone_in(patient, "dial", "dear")
    patient.store.profiles.upsert([User(user_id=person, consent={"analytics": False})])
    assert ask(patient, user_id=person, placement="home").experiment == {}
    assert ask(patient, user_id=None, similar_to="g1-4", placement="home").experiment == {}


def test_conditions_know_the_channel_and_of_who_refuses_nothing(patient: Engine) -> None:
    when = {"attribute": "user.events", "op": "gt", "value": 0}
    put(patient, "active", placements=["home", "mail"], arms=[{"id": "a"}, {"id": "b"}], when=when)
    mail = {"attribute": "context.channel", "op": "eq", "value": "email"}
    put(patient, "mail", layer="mail", placements=["mail"], arms=[{"id": "a"}, {"id": "b"}], when=mail)
    placement = {"id": "mail", "channel": "email"}
    patient.store.documents.put("placement", "mail", placement, by="test")
    patient.store.profiles.upsert([User(user_id="shy", consent={"personalization": False}), User(user_id="eve")])
    do(patient, "g2-3", user="shy")
    do(patient, "g2-3", user="eve")
    patient.take_changes()
    assert set(ask(patient, user_id="eve", placement="home").experiment) == {"active"}
    assert set(ask(patient, user_id="eve", placement="mail").experiment) == {"active", "mail"}
    refused = ask(patient, user_id="shy", placement="mail")
    assert set(refused.experiment) == {"mail"}
    assert ids(refused) == ids(ask(patient, user_id="nobody", placement="mail", personalized=False))


def test_a_stopped_arm_gives_its_people_what_everybody_gets(patient: Engine) -> None:
    put(patient)
    person, other = someone_in(patient, "dial", "dear"), someone_in(patient, "dial", "as_is")
    patient.store.documents.put(
        "experiment", "dial", experiment().without("dear", "it lost").model_dump(mode="json"), by="test"
    )
    patient.take_changes()
    answer = ask(patient, user_id=person, placement="home")
    assert (answer.experiment, ids(answer)) == ({}, ids(ask(patient, user_id=person, placement="plain")))
    assert ask(patient, user_id=other, placement="home").experiment == {"dial": "as_is"}


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"arms": ARMS[:1]}, "arms", "at least 2"),
        ({"arms": [*ARMS, ARMS[1]]}, "arms.2.id", "'dear' is the id of another arm"),
        ({"arms": [{"id": HOLDOUT}, ARMS[1]]}, "arms.0.id", "kept out"),
        (
            {"arms": [ARMS[0] | {"weight": 0.5}, ARMS[1] | {"weight": 0.4}]},
            "arms",
            "add up to 0.9; they must add up to 1",
        ),
        ({"arms": [ARMS[0] | {"weight": 0.5}, ARMS[1]]}, "arms", "1 of 2 arms have a weight"),
        ({"arms": [{"id": "a"}, {"id": "b"}]}, "arms", "nobody would ever be part of it"),
        ({"arms": [ARMS[0] | {"stopped": "x"}, ARMS[1]]}, "arms.0.stopped", "stop the experiment instead"),
        ({"slice": {"start": 0.6, "end": 0.6}}, "slice", "must lie below end 0.6"),
        ({"starts_at": "2026-02-01", "ends_at": "2026-01-01"}, "ends_at", "after starts_at"),
        ({"id": "release"}, "id", "canary"),
        ({"arms": [ARMS[0], {"id": "b", "release": "../x"}]}, "arms.1.release", "pattern"),
        ({"primary": "luck"}, "primary", "'conversion'"),
        ({"guardrails": [{"metric": "luck"}]}, "guardrails.0.metric", "'conversion'"),
        ({"arms": [ARMS[0], {"id": "b", "colour": 1}]}, "arms.1.colour", "known: id, weight, placements"),
        ({"trafic": 1}, "trafic", "traffic"),
        ({"when": {"attribute": "user", "op": "eq", "value": 1}}, "when.attribute", "unknown"),
        (
            {"arms": [ARMS[0], {"id": "b", "placements": {"home": {"diversity": 2}}}]},
            "arms.1.placements.home.diversity",
            "less than or equal to 1",
        ),
        (
            {"arms": [ARMS[0], {"id": "b", "placements": {"home": {"id": "x"}}}]},
            "arms.1.placements.home.id",
            "not its name",
        ),
        (
            {"arms": [ARMS[0], {"id": "b", "placements": {"home": {"values": {"colour": 1}}}}]},
            None,
            "brand, price, rank",
        ),
        ({"arms": [ARMS[0], {"id": "b", "rules_on": ["none"]}]}, "arms.1.rules_on.0", "unknown rule 'none'"),
        ({"arms": [ARMS[0], {"id": "b", "layouts": {"home": "none"}}]}, "arms.1.layouts.home", "unknown layout 'none'"),
        ({"arms": [ARMS[0], {"id": "b", "contents": {"c": {"y": 1.0}}}]}, "arms.1.contents.c.y", "unknown variant 'y'"),
        ({"arms": [ARMS[0], {"id": "b", "contents": {"d": {"y": 1.0}}}]}, "arms.1.contents.d", "unknown content 'd'"),
        ({"arms": [ARMS[0], {"id": "b", "rules_on": ["r"], "rules_off": ["r"]}]}, "arms.1.rules_off", "on and off"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(fields: dict[str, Any], field: str | None, message: str) -> None:
    policy = compiled(rules=({"id": "r", "action": {"type": "exclude"}, "items": CHEAP},))
    with pytest.raises(InputError, match=message) as caught:
        policy.admit(EXPERIMENTS, body() | fields, item_attributes=["brand", "rank"])
    assert field is None or caught.value.field == field


def test_two_experiments_of_a_layer_do_not_meet() -> None:
    running = compiled(body("first", slice={"start": 0.0, "end": 0.5}, ends_at="2026-06-01T00:00:00Z"))
    with pytest.raises(InputError, match=r"0.25 to 1 of layer 'default' meets 0 to 0.5, which 'first' has") as caught:
        running.admit(EXPERIMENTS, body("second", slice={"start": 0.25, "end": 1.0}), item_attributes=None)
    assert caught.value.field == "slice"
    for free in (
        {"slice": {"start": 0.5, "end": 1.0}},
        {"starts_at": "2026-06-01T00:00:00Z"},
        {"state": "draft"},
    ):
        running.admit(EXPERIMENTS, body("second") | free, item_attributes=None)
    with pytest.raises(InputError, match="'first' of layer 'default' changes placement 'home' too") as caught:
        running.admit(EXPERIMENTS, body("second", layer="other"), item_attributes=None)
    assert caught.value.field == "arms.1.placements.home"


def test_what_two_writers_let_in_at_once_is_told_and_left_out() -> None:
    policy = compiled(body("a"), body("b"))
    assert [(one.kind, one.id, one.field) for one in policy.problems] == [("experiment", "b", "slice")]
    assert [one.id for one in policy.of(EXPERIMENTS).on_placement("home")] == ["a"]
    gone = compiled(body(arms=[ARMS[0], {"id": "b", "rules_on": ["gone"]}]))
    assert gone.problem(EXPERIMENTS, "dial") == "unknown rule 'gone'; known: none"
    assert not gone.of(EXPERIMENTS).everywhere


def test_arms_stay_as_they_are_once_people_are_in_them(client: TestClient) -> None:  # noqa: F811
    url = "/v1/experiments/dial"
    assert client.put(url, json=body(state="draft") | {"holdout": 0.5}).status_code == 200
    assert client.put(url, json=body(traffic=0.1)).status_code == 200
    for change in ({"arms": [ARMS[0] | {"weight": 0.4}, ARMS[1] | {"weight": 0.6}]}, {"holdout": 0.1}, {"layer": "x"}):
        detail = error(client.put(url, json=body() | change), 422)
        assert detail["field"] == next(iter(change))
        assert "make another one" in detail["message"]
    assert client.put(url, json=body(traffic=0.5, description="more")).status_code == 200
    stopped = [ARMS[0], ARMS[1] | {"stopped": "by hand"}]
    assert client.put(url, json=body(arms=stopped, state="stopped")).status_code == 200
    assert error(client.put(url, json=body(state="draft")), 422)["field"] == "state"
    assert client.get(url).json()["arms"][1]["stopped"] == "by hand"


def test_an_answer_over_http_says_which_arms_it_is_of(client: TestClient) -> None:  # noqa: F811
    assert client.post("/v1/experiments", json=body(), params={"reason": "try it"}).status_code == 201
    arms = {recommend(client, user_id=person, placement="home")["experiment"]["dial"] for person in PEOPLE[:12]}
    assert arms == {"as_is", "dear"}
    entry = client.get("/v1/audit", params={"kind": "experiment"}).json()["entries"][0]
    assert (entry["action"], entry["why"]) == ("create", "try it")
