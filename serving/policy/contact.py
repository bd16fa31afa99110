"""Contact: whether a person may be written to, and from when on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from embeddings.errors import InputError
from embeddings.sentences import sentence

ZONE = "time_zone"
"""The attribute of a person that says where they live, such as Europe/Berlin."""


def _clock(text: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError("must be a time of day with two digits each, such as 09:00")
    return text


Clock = Annotated[str, AfterValidator(_clock), Field(json_schema_extra={"pattern": r"^([01]\d|2[0-3]):[0-5]\d$"})]


class Cap(BaseModel):
    """At most `limit` messages on a channel within `days`, counted back from the moment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=1000)]
    days: Annotated[float, Field(gt=0, le=365, allow_inf_nan=False)]

    @classmethod
    def read(cls, text: str) -> Cap:
        """A cap from text such as `3/7`: three in seven days. Raises `InputError`."""
        found = re.fullmatch(r"(\d{1,4})/(\d{1,3}(?:\.\d+)?)", text.strip())
        if found is None or int(found[1]) < 1 or not 0 < float(found[2]) <= 365:
            raise InputError(f"cap: '{text}' is not a number of messages and of days, such as 3/7", field="cap")
        return cls(limit=int(found[1]), days=float(found[2]))


class Quiet(BaseModel):
    """From `start` until just before `end`, on the person's clock, they are left in peace; `end` may be the next morning.

    `zone` is where somebody is taken to be who does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Clock
    end: Clock
    zone: str = "UTC"

    @model_validator(mode="after")
    def _makes_sense(self) -> Quiet:
        if self.start == self.end:
            raise ValueError("leaves no time at all")
        check_zone(self.zone)
        return self

    @classmethod
    def read(cls, text: str, zone: str) -> Quiet:
        """Quiet hours from text such as `21:00-08:00`. Raises `InputError`."""
        start, _, end = text.strip().partition("-")
        try:
            return cls(start=start, end=end, zone=zone)
        except ValidationError as error:
            (detail, *_) = error.errors(include_url=False)
            what = "is not a time of day and another, such as 21:00-08:00" if detail["loc"] else sentence(detail)
            raise InputError(f"quiet: '{text}' {what}", field="quiet") from None

    def until(self, at: datetime, attributes: Mapping[str, Any]) -> datetime | None:
        """When the quiet hours end that hold at a moment for a person; None if none do. In UTC, as everything."""
        here = at.astimezone(zone_for(attributes) or zone_of(self.zone))
        now, start, end = 60 * here.hour + here.minute, _minutes(self.start), _minutes(self.end)
        quiet = start <= now < end if start < end else now >= start or now < end
        if not quiet:
            return None
        days = 1 if now >= end else 0
        morning = (here + timedelta(days=days)).replace(hour=end // 60, minute=end % 60, second=0, microsecond=0)
        return morning.astimezone(UTC)


def zone_for(attributes: Mapping[str, Any]) -> ZoneInfo | None:
    """The time zone of a person, None where they do not say one."""
    name = attributes.get(ZONE)
    return zone_of(name) if isinstance(name, str) else None


def check_zone(name: str) -> None:
    """Raise `InputError` unless a name is one of the IANA database."""
    if zone_of(name) is None:
        raise InputError(f"'{name}' is no time zone; write one like Europe/Berlin", field=ZONE)


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo | None:
    """The time zone of a name in the IANA database, or None."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # no such zone, not a name, a folder of the database
        return None


def _minutes(clock: str) -> int:
    return 60 * int(clock[:2]) + int(clock[3:])
