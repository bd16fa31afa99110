"""Query parameters: one that a route does not know is an error, as an unknown field of a body is."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from embeddings.errors import unknown_name


async def known_parameters(request: Request) -> None:
    """Raise the error that lists the parameters of the route, if the address has another one."""
    if request.scope["query_string"]:
        route: APIRoute = request.scope["route"]
        known = frozenset(_names(route.dependant))
        for name in request.query_params:
            if name not in known:
                raise unknown_name("parameter", name, known, field=name)


def _names(dependant: Dependant) -> Iterator[str]:
    for parameter in dependant.query_params:
        annotation = parameter.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from annotation.model_fields
        else:
            yield parameter.alias
    for inner in dependant.dependencies:
        yield from _names(inner)
