"""Thin shells of Ray Serve around plain stages: one for the fused topology, four for the chained one.

A shell holds an `Engine` and passes bytes or HTTP on; what it computes is not decided here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import faiss
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from embeddings.errors import Unavailable
from serving.api import create_api
from serving.pipeline.engine import Call, Engine
from serving.pipeline.pipeline import SECTIONS
from serving.pipeline.stage import Section
from serving.settings import Settings


def started(settings: Settings, **kwargs: Any) -> Engine:
    """An engine that is ready for its first request, in a process set up for serving."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # torch and faiss bring separate thread pools; a replica that used both at full width would fight with itself.
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    engine = Engine(settings, **kwargs)
    engine.start()
    # The release and the libraries stay for good: the collector need not walk them again and again.
    gc.collect()
    gc.freeze()
    return engine


class Shell:
    """What every deployment has: an engine, and a health check that notices when it stopped following changes."""

    engine: Engine

    def check_health(self) -> None:
        """Called by Serve every few seconds."""
        if not self.engine.following:
            raise Unavailable("the engine no longer follows changes")

    def __del__(self) -> None:
        """Serve's hook when a replica retires: requests in flight have finished."""
        engine = getattr(self, "engine", None)
        if engine is not None:
            engine.stop()


@serve.deployment
@serve.ingress()
class Fused(Shell):
    """The whole service in one replica: no hop between stages."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.engine = started(Settings(**settings))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self.engine)


@serve.deployment
@serve.ingress()
class Ingress(Shell):
    """HTTP, events and the store; the sections of the pipeline are calls to other deployments."""

    def __init__(self, settings: dict[str, Any], *handles: DeploymentHandle[Any]) -> None:
        sections = {section: caller(handle) for section, handle in zip(SECTIONS, handles, strict=True)}
        self.engine = started(Settings(**settings), sections=sections)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self.engine)


class SectionShell(Shell):
    """One section of the pipeline as a deployment."""

    section: Section

    def __init__(self, settings: dict[str, Any]) -> None:
        self.engine = started(Settings(**settings))

    async def run(self, payload: bytes) -> bytes:
        """Run the section on a request that the ingress began."""
        return await asyncio.get_running_loop().run_in_executor(
            self.engine.pool, self.engine.run_section, self.section, payload
        )


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


def caller(handle: DeploymentHandle[Any]) -> Call:
    """A section as the engine wants it: bytes in, bytes out."""

    async def call(payload: bytes) -> bytes:
        reply: bytes = await handle.run.remote(payload)
        return reply

    return call
