"""Settings of the service: one typed document, four places it may come from.

Precedence: arguments of the command line or of `build`, then environment variables `BESPOKE_<NAME>`, then the TOML file,
then the defaults below. An unknown name is an error that lists the known ones; a variable is one if it nearly names a
setting, because others of ours have the prefix too.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from embeddings.errors import ConfigError, unknown_name
from embeddings.schema import Id, Name, first_error
from serving.logs import Style

PREFIX = "BESPOKE_"
NEARLY = 0.8
"""How alike two names are of which one is taken for the other, misspelt."""


def _origins(given: Any) -> Any:
    origins = [one.strip() for one in given.split(",") if one.strip()] if isinstance(given, str) else given
    for one in origins if isinstance(origins, list | tuple) else ():
        if not isinstance(one, str) or not re.fullmatch(r"https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?", one):
            raise ValueError(f"'{one}' is not an origin such as https://shop.example")
    return origins


def _feedback_types(given: Any) -> Any:
    pairs = given
    if isinstance(given, str):
        listed = [one.partition("=") for one in given.split(",") if one.strip()]
        pairs = {name.strip(): event_type.strip() for name, _, event_type in listed}
    if isinstance(pairs, dict) and len(set(pairs.values())) != len(pairs):
        raise ValueError("two types of feedback must not become one type of events")
    return pairs


FeedbackTypes = Annotated[dict[Id, Name], BeforeValidator(_feedback_types)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]


class Settings(BaseModel):
    """Everything an operator may set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    releases: Annotated[Path, Field(description="Folder of model releases.")] = Path("var/releases")
    store: Annotated[str, Field(description="sqlite:///FILE or postgresql://USER@HOST/DATABASE.")] = (
        "sqlite:///var/store.db"
    )
    host: Annotated[str, Field(description="Address to listen on; anything but loopback needs a proxy in front.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Field(ge=1, le=65_535, description="Port to listen on.")] = 8000
    topology: Annotated[
        Literal["fused", "chained"],
        Field(description="fused: every stage in each replica; chained: retrieval, ranking and rules as deployments."),
    ] = "fused"
    replicas: Annotated[int, Field(ge=1, le=256, description="Replicas of each deployment.")] = 1
    threads: Annotated[int, Field(ge=1, le=64, description="Requests a replica computes at a time.")] = 1
    replica_cpus: Annotated[float, Field(gt=0, le=64, description="Cores Ray reserves for a replica.")] = 0.2
    ranking_gpus: Annotated[
        float, Field(ge=0, le=8, description="GPUs of a ranking replica in the chained topology.")
    ] = 0.0
    max_ongoing: Annotated[int, Field(ge=1, description="Requests a replica accepts at a time.")] = 64
    max_queued: Annotated[int, Field(ge=1, description="Requests that may wait; more get 429 with Retry-After.")] = 128
    deadline_ms: Annotated[
        float,
        Field(ge=5, le=60_000, description="A list is answered after so long, with whatever there is then."),
    ] = 150.0
    request_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds; any other request is ended after so long.")
    ] = 10.0
    max_body_bytes: Annotated[int, Field(ge=1024, description="Larger request bodies get 413.")] = 1 << 20
    body_timeout_s: Annotated[float, Field(gt=0, description="Request bodies that take longer to arrive get 408.")] = (
        5.0
    )
    auth: Annotated[
        Literal["auto", "on", "off"],
        Field(description="API keys; auto: needed unless host is loopback, where alone they may be off."),
    ] = "auto"
    approval: Annotated[
        bool, Field(description="Rules change through drafts that somebody else has agreed to; directly they do not.")
    ] = False
    cors_origins: Annotated[
        Origins, Field(description="Origins whose pages may call the API, separated by commas; none by default.")
    ] = ()
    poll_s: Annotated[float, Field(gt=0, le=10, description="How often a replica looks for changes of others.")] = 0.05
    trend_s: Annotated[float, Field(gt=0, description="How often demand is counted anew.")] = 15.0
    guardrails_s: Annotated[
        float, Field(gt=0, description="How often it is looked whether an arm of an experiment must be stopped.")
    ] = 60.0
    decisions: Annotated[
        float, Field(ge=0, le=1, description="Share of the answers that the decision log keeps, by their ids.")
    ] = 1.0
    site: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
            description="Name of this site where several share a cluster: a label of its metrics, a field of its logs.",
        ),
    ] = None
    gorse: Annotated[bool, Field(description="Serve Gorse's REST interface under /api.")] = True
    gorse_feedback: Annotated[
        FeedbackTypes,
        Field(
            description="Feedback types of Gorse's clients as event types, `read=view,star=like`; others keep their names."
        ),
    ] = {"read": "impression", "star": "like"}
    console: Annotated[bool, Field(description="Serve the console at /console.")] = True
    logs: Annotated[
        Style, Field(description="text: a line for people; json: an object a line, with the request id as a field.")
    ] = "text"
    otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/\s]+(/\S*)?$",
            description="Where traces go: an OpenTelemetry collector's HTTP address such as http://127.0.0.1:4318.",
        ),
    ] = None

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, Any] | None = None,
        *,
        file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Settings:
        """Settings from all places; raises `ConfigError` that names the place and the trouble."""
        values = _from_file(file) if file is not None else {}
        values |= _from_environment(os.environ if environment is None else environment)
        values |= {name: value for name, value in (arguments or {}).items() if value is not None}
        for name in values:
            if name not in cls.model_fields:
                raise ConfigError(unknown_name("setting", name, cls.model_fields).message, field=name)
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(first_error(error).message, field=first_error(error).field) from None

    @model_validator(mode="after")
    def _open_only_at_home(self) -> Settings:
        if self.auth == "off" and not self.loopback:
            raise ValueError(
                f"auth: may be off only on loopback, and host is {self.host}; say on, and make a key with "
                "`bespoke keys create`"
            )
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def protected(self) -> bool:
        """Whether callers need an API key."""
        return self.auth == "on" or (self.auth == "auto" and not self.loopback)

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://{self.host}:{self.port}"


def _from_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no settings file {file}", field="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}", field="config") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    named = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    for name in named.keys() - Settings.model_fields.keys():
        near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=NEARLY)
        if near:
            variables = [PREFIX + one.upper() for one in (name, near[0])]
            raise ConfigError(f"unknown variable {variables[0]}; did you mean {variables[1]}?", field=name)
    return {name: value for name, value in named.items() if name in Settings.model_fields}
