"""The whole OpenAPI document against the application: generated requests, answered as documented, never with 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.python.asgi import ASGIClient, get_client
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.conftest import write_world

GENERATED = settings(max_examples=12, stateful_step_count=5, suppress_health_check=list(HealthCheck))
WRONG = settings(GENERATED, max_examples=8)
"""For each operation: a wrong request takes three times as long to make up as a sound one."""

BEYOND_JSON_SCHEMA = [positive_data_acceptance]
"""A condition must name an attribute that the catalogue has, a moment must not lie ahead: no schema can say so."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIClient]:
    """A client of the application over the known-answer world, with a key that may do everything."""
    folder = tmp_path_factory.mktemp("conformity")
    write_world(folder / "releases")
    engine = Engine(Settings(releases=folder / "releases", store=f"sqlite:///{folder / 'store.db'}", auth="on"))
    engine.start()
    _, text = engine.store.keys.create("all", ["admin"], per_minute=10_000_000, by="test")
    with get_client(create_api(engine)) as client:
        client.headers["Authorization"] = f"Bearer {text}"
        yield client
    engine.stop()


@pytest.fixture
def schema(session: ASGIClient) -> Any:
    loaded = schemathesis.openapi.from_asgi("/openapi.json", session.app)
    loaded.config.checks.negative_data_rejection.expected_statuses.append("413")  # too long is too large, too

    @loaded.hook
    def filter_query(context: Any, query: Any) -> bool:
        """A query string has no form for an object or a list in place of one value: what arrives may well be sound."""
        return not any(isinstance(value, dict | list) for value in (query or {}).values())

    return loaded


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_operation_answers_as_documented(schema: Any, session: ASGIClient, mode: GenerationMode) -> None:
    # A wrong key is a wrong key, whatever else is wrong: it is tried with sound requests only.
    excluded = BEYOND_JSON_SCHEMA + ([ignored_auth] if mode == GenerationMode.NEGATIVE else [])
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 25
    wrong = []
    for operation in operations:

        @(GENERATED if mode == GenerationMode.POSITIVE else WRONG)
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: Case) -> None:
            case.call_and_validate(session=session, excluded_checks=excluded)

        try:
            answers()
        except Unsatisfiable:  # nothing to be wrong about: neither body nor parameters
            assert mode == GenerationMode.NEGATIVE
            assert not any((operation.body, operation.path_parameters, operation.query))
        except FailureGroup as group:
            wrong += [f"{operation.label}: {one}" for one in group.exceptions]
    assert not wrong, "\n\n".join(wrong)


def test_chains_of_operations_answer_as_documented(schema: Any, session: ASGIClient) -> None:
    class Chains(schema.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return {"session": session}

        def validate_response(self, response: Any, case: Case, **options: Any) -> None:
            case.validate_response(response, excluded_checks=BEYOND_JSON_SCHEMA)

    Chains.run(settings=GENERATED)
