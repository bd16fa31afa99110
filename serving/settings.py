"""Settings of the service: one typed document, four places it may come from.

Precedence: arguments of the command line or of `build`, then environment variables `BESPOKE_<NAME>`, then the TOML file,
then the defaults below. An unknown name is an error that lists the known ones.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embeddings.errors import ConfigError, unknown_name
from embeddings.schema import first_error

PREFIX = "BESPOKE_"


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
    request_timeout_s: Annotated[float, Field(gt=0, description="Seconds; a request that takes longer is ended.")] = (
        10.0
    )
    max_body_bytes: Annotated[int, Field(ge=1024, description="Larger request bodies get 413.")] = 1 << 20
    poll_s: Annotated[float, Field(gt=0, le=10, description="How often a replica looks for changes of others.")] = 0.05
    trend_s: Annotated[float, Field(gt=0, description="How often demand is counted anew.")] = 15.0
    console: Annotated[bool, Field(description="Serve the console at /console.")] = True

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
    # Only names of settings count: other programs of ours (tests, the notebook) have variables with the same prefix.
    named = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    return {name: value for name, value in named.items() if name in Settings.model_fields}
