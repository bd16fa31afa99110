"""Fields: what bodies of many routes have in common. Unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from embeddings.schema import Id, Scalar
from embeddings.schema import Name as FieldName

MAX_K = 200


MAX_BATCH = 1000


class Body(BaseModel):
    """Base of everything a client sends."""

    model_config = ConfigDict(extra="forbid")


K = Annotated[
    int | None,
    Field(
        ge=1, le=MAX_K, strict=True, description="How many items to return; as many as the placement says by default."
    ),
]


Page = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=200_000,
        description="The `next_page` of an answer, with the same request: what comes below, without repeating anything.",
    ),
]


Context = Annotated[
    dict[FieldName, Scalar],
    Field(max_length=32, description="Facts of the request: channel, country, device, …"),
]


Filter = Annotated[
    dict[str, Any] | None,
    Field(description='A condition over item attributes, such as {"attribute": "price", "op": "lt", "value": 20}.'),
]


Exclude = Annotated[list[Id], Field(max_length=MAX_BATCH, description="Items that must not be in the answer.")]


def _what_if(value: Any) -> bool | str:
    if value is True or value is False or value == "counterfactual":
        return value  # type: ignore[no-any-return]
    raise ValueError("must be true, false or 'counterfactual'")


WhatIf = Annotated[
    bool | Literal["counterfactual"],
    PlainValidator(_what_if),  # one sentence, instead of one for each kind of value
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"const": "counterfactual"}]}),
    Field(
        description="True returns the stage trace; `counterfactual` also what the list would be without an event, a rule, "
        "one of its places, or the person."
    ),
]


Explain = Annotated[bool, Field(strict=True, description="Return the stage trace.")]


Fields = Annotated[bool, Field(strict=True, description="Return the items themselves, not only their ids.")]


Deadline = Annotated[
    float | None,
    Field(ge=5, le=60_000, description="Milliseconds; asks for an answer sooner than the service's own deadline."),
]
