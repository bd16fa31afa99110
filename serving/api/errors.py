"""The one error shape: `{"error": {"code", "message", "field"}}`."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response

from embeddings.errors import BespokeError, Damaged
from embeddings.sentences import path, sentence

logger = logging.getLogger("bespoke.api")

CODES = {
    400: "malformed_json",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_type",
}
NOT_KEPT = {"Cache-Control": "no-store"}
TAGS = {"body", "query", "path", "batch", "single"}


class ErrorDetail(BaseModel):
    """What went wrong; `field` is a path into the request such as `events.3.item_id`."""

    model_config = ConfigDict(extra="forbid")

    code: str
    message: str
    field: str | None


class ErrorOut(BaseModel):
    """The body of every answer with a status of 400 or more."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorOut, "description": "The body is not JSON"},
    401: {"model": ErrorOut, "description": "No valid API key"},
    403: {"model": ErrorOut, "description": "The key has not got the scope that is needed"},
    404: {"model": ErrorOut, "description": "Not found"},
    408: {"model": ErrorOut, "description": "The body took too long to arrive"},
    409: {"model": ErrorOut, "description": "In conflict with what is stored"},
    410: {"model": ErrorOut, "description": "Not kept any longer"},
    413: {"model": ErrorOut, "description": "The body is too large"},
    415: {"model": ErrorOut, "description": "The body is not declared as JSON"},
    422: {"model": ErrorOut, "description": "A field is wrong; nothing was changed"},
    429: {"model": ErrorOut, "description": "Too much work waits; send again after the seconds of Retry-After"},
    503: {"model": ErrorOut, "description": "Not ready, or the store does not answer"},
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of these statuses, for the OpenAPI document."""
    return {status: RESPONSES[status] for status in statuses}


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer, encoded once and without intermediate models; it may be about a person, so nobody keeps it."""
    return Response(orjson.dumps(body), status, {**NOT_KEPT, **(headers or {})}, media_type="application/json")


def error_response(
    status: int, code: str, message: str, field: str | None = None, *, headers: dict[str, str] | None = None
) -> Response:
    """An error answer in the one shape."""
    if headers is None and status in (429, 503):
        headers = {"Retry-After": "1"}
    return json_response({"error": {"code": code, "message": message, "field": field}}, status, headers)


def install(api: FastAPI) -> None:
    """Make every error of ours, of validation and of the framework come out in the one shape; the guard has the rest."""

    @api.exception_handler(BespokeError)
    async def ours(_: Request, error: BespokeError) -> Response:
        if error.status >= 500:
            # A damaged record is named in the answer alone: it may be a person's.
            logger.error("%s: %s", error.code, "" if isinstance(error, Damaged) else error.message)
        return error_response(error.status, error.code, error.message, error.field)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        detail = error.errors()[0]
        if detail["type"] == "json_invalid":
            return error_response(400, "malformed_json", f"the body is not valid JSON: {detail['ctx']['error']}")
        field = path(part for part in detail["loc"] if part not in TAGS)
        return error_response(422, "invalid_input", f"{field or 'the body'}: {sentence(detail)}", field or None)

    @api.exception_handler(HTTPException)
    async def framework(_: Request, error: HTTPException) -> Response:
        code = CODES.get(error.status_code, "http_error")
        return error_response(error.status_code, code, str(error.detail))
