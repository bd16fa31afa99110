"""Direct routes: one model as the body, one response as the answer, and nothing in between.

The framework resolves dependencies, reads the content type and parses the body a second time for every request; for a list
that is a good part of what it costs. A route of this class takes the body as the guard has parsed it, validates it and
calls the endpoint. It is documented and answers errors like any other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final, get_type_hints

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

PARSED: Final = "bespoke.parsed"
"""Where the guard leaves the parsed body in the scope; no entry where there was no body."""

MISSING: Final = {"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}


class DirectRoute(APIRoute):
    """A route whose endpoint takes one pydantic model, named in its signature, and returns a response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What runs instead of the framework's handler."""
        endpoint = self.endpoint
        (name,) = inspect.signature(endpoint).parameters
        model: type[BaseModel] = get_type_hints(endpoint)[name]
        validate = model.__pydantic_validator__.validate_python

        async def handle(request: Request) -> Response:
            if PARSED not in request.scope:
                raise RequestValidationError([MISSING])
            try:
                body = validate(request.scope[PARSED])
            except ValidationError as error:
                wrong = error.errors(include_url=False)
                raise RequestValidationError([one | {"loc": ("body", *one["loc"])} for one in wrong]) from None
            response: Response = await endpoint(body)
            return response

        return handle
