"""Thin shells of Ray Serve around plain stages: one for the fused topology, four for the chained one.

A shell holds an `Engine` and passes bytes or HTTP on; what it computes is not decided here.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import faiss
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from embeddings.errors import Unavailable
from serving import logs, metrics
from serving.api import create_api
from serving.pipeline.ladder import Call
from serving.pipeline.pipeline import NEEDS, SECTIONS
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.stages.stage import Section
from serving.telemetry import Telemetry, Traced

REQUEST_ID = "request-id"


def listening(settings: dict[str, Any]) -> Settings:
    """Settings with the address that Serve really listens on: with `serve run` another file decides about it.

    Raises `ConfigError` if keys are switched off where others than this machine can ask.
    """
    client = _get_global_client(raise_if_no_controller_running=True)
    assert client is not None
    return Settings.load(settings | {"host": client.http_config.host}, environment={})


class Shell:
    """What every deployment has: an engine, and a health check that notices when it stopped following changes."""

    engine: Engine
    telemetry: Telemetry | None

    def start(self, settings: Settings, **options: Any) -> None:
        """Set this process up for serving, and make an engine that is ready for its first request."""
        logs.set_up(settings.logs, site=settings.site)
        metrics.claim(settings.site)
        # torch and faiss bring separate thread pools; a replica that used both at full width would fight with itself.
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        self.engine = Engine(settings, **options)
        self.engine.start()
        self.telemetry = Telemetry.of(settings)
        if self.telemetry is not None:
            self.telemetry.instrument(self.engine)
        # The release and the libraries stay for good: the collector need not walk them again and again.
        gc.collect()
        gc.freeze()

    def api(self) -> FastAPI:
        """The HTTP application around the engine."""
        api = create_api(self.engine)
        if self.telemetry is not None:
            api.add_middleware(Traced, telemetry=self.telemetry)
        return api

    def check_health(self) -> None:
        """Called by Serve every few seconds."""
        if not self.engine.following:
            raise Unavailable("the engine no longer follows changes")

    def __del__(self) -> None:
        """Serve's hook when a replica retires: requests in flight have finished."""
        engine, telemetry = getattr(self, "engine", None), getattr(self, "telemetry", None)
        if engine is not None:
            engine.stop()
        if telemetry is not None:
            telemetry.close()


@serve.deployment
@serve.ingress()
class Fused(Shell):
    """The whole service in one replica: no hop between stages."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.start(listening(settings))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.api()


@serve.deployment
@serve.ingress()
class Ingress(Shell):
    """HTTP, events and the store; the sections of the pipeline are calls to other deployments."""

    def __init__(self, settings: dict[str, Any], *handles: DeploymentHandle[Any]) -> None:
        sections = {section: self.caller(handle) for section, handle in zip(SECTIONS, handles, strict=True)}
        self.start(listening(settings), sections=sections, parts=frozenset())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.api()

    def caller(self, handle: DeploymentHandle[Any]) -> Call:
        """A section as the engine wants it: bytes in, bytes out; the far side's log and traces know the request."""

        async def call(payload: bytes) -> bytes:
            carried = self.telemetry.carried() if self.telemetry is not None else {}
            reply: bytes = await handle.run.remote(payload, carried | {REQUEST_ID: logs.REQUEST.get()})
            return reply

        return call


class SectionShell(Shell):
    """One section of the pipeline as a deployment."""

    section: Section

    def __init__(self, settings: dict[str, Any]) -> None:
        self.start(Settings(**settings), parts=NEEDS[self.section])

    async def run(self, payload: bytes, about: dict[str, str]) -> bytes:
        """Run the section on a request that the ingress began; `about` says which, for the log and the traces."""
        logs.REQUEST.set(about[REQUEST_ID])
        span = nullcontext() if self.telemetry is None else self.telemetry.request(about, self.section)
        with span:
            return await self.engine.run_section_in_time(self.section, payload)


@serve.deployment
class Retrieval(SectionShell):
    """Filters and sources."""

    section = "retrieval"


@serve.deployment
class Ranking(SectionShell):
    """The ranking model."""

    section = "ranking"


@serve.deployment
class Rules(SectionShell):
    """Boosts, caps, diversity, pins: the slate."""

    section = "rules"
