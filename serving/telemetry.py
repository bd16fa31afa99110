"""Traces for OpenTelemetry: a span for each request, for the read of the store, and for each stage of the pipeline.

Off unless `otlp_endpoint` is set, and then nothing of it is imported or in the way of a request: what is traced is wrapped
when a replica starts. A caller's `traceparent` is followed, and so is ours into the other deployments of the chained
topology. Spans carry names, statuses and request ids, never what a person sent. Which requests are sampled, and further
options of the exporter, are the standard's own variables (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, …).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embeddings.errors import InputError, Unavailable
from serving.pipeline.pipeline import STAGES
from serving.replica.engine import Engine
from serving.request.work import Work
from serving.settings import Settings
from serving.stages.stage import Stage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

T = TypeVar("T")

CARRIED = ("traceparent", "tracestate")


class Telemetry:
    """The tracer of one process; `exporter` is where spans go in the place of the endpoint, for tests.

    Raises `Unavailable` if the packages it needs are not installed.
    """

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None, *, site: str | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise Unavailable(
                f"otlp_endpoint is set, and {error.name} is not installed: pip install 'bespoke[telemetry]'",
                field="otlp_endpoint",
            ) from error
        names = {"service.name": "bespoke", "service.version": version("bespoke")}
        resource = Resource.create(names | ({"service.namespace": site} if site else {}))
        self._provider = TracerProvider(resource=resource)
        target = exporter or OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(target))
        self._tracer = self._provider.get_tracer("bespoke")
        self._context = TraceContextTextMapPropagator()
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._wrapped: list[tuple[Any, str]] = []

    @classmethod
    def of(cls, settings: Settings) -> Telemetry | None:
        """The tracer that the settings ask for, or None."""
        return cls(settings.otlp_endpoint, site=settings.site) if settings.otlp_endpoint else None

    def close(self) -> None:
        """Take the wrapping off and send what was not sent yet."""
        while self._wrapped:
            delattr(*self._wrapped.pop())
        self._provider.shutdown()

    def instrument(self, engine: Engine) -> None:
        """Trace the engine's read of the store, and the stages of this process where they have something to do."""
        self._wrap(engine.store.profiles, "read", self._traced("store.read", engine.store.profiles.read))
        for stage in STAGES:
            self._wrap(stage, "run", self._staged(stage, stage.run))

    def request(self, carrier: Mapping[str, str], name: str) -> AbstractContextManager[Any]:
        """A span around a request of another process, below that one's span if `carrier` has it."""
        parent = self._context.extract({key: carrier[key] for key in CARRIED if key in carrier})
        return self._span(name, parent, kind=self._server)

    def carried(self) -> dict[str, str]:
        """What the next process needs in order to go on below the current span."""
        carrier: dict[str, str] = {}
        self._context.inject(carrier)
        return carrier

    def failed(self, span: Any) -> None:
        """Mark a span as failed."""
        span.set_status(self._error)

    def _wrap(self, owner: Any, name: str, traced: Callable[..., Any]) -> None:
        """Put a call in front of a method, on the one object and not on its class."""
        setattr(owner, name, traced)
        self._wrapped.append((owner, name))

    def _staged(self, stage: Stage, run: Callable[[Work], None]) -> Callable[[Work], None]:
        def staged(work: Work) -> None:
            if not stage.applies(work):
                return
            with self._span(f"{stage.kind} {stage.name}") as span:
                run(work)
                if stage.name in work.degraded:
                    self.failed(span)

        return staged

    def _traced(self, name: str, call: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(call)
        def traced(*args: Any, **kwargs: Any) -> T:
            with self._span(name):
                return call(*args, **kwargs)

        return traced

    @contextmanager
    def _span(self, name: str, parent: Any = None, **options: Any) -> Iterator[Any]:
        # Of an error only the type is told: its message may quote what a person sent.
        with self._tracer.start_as_current_span(
            name, parent, record_exception=False, set_status_on_exception=False, **options
        ) as span:
            try:
                yield span
            except BaseException as error:
                if not isinstance(error, InputError):  # the caller's mistake, not a failure
                    span.set_status(self._error, type(error).__name__)
                raise


class Traced:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, within a span."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self.telemetry.request(given, scope["method"]) as span:

            async def reply(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    request_id = dict(message["headers"]).get(b"x-request-id", b"").decode("latin-1")
                    span.set_attribute("bespoke.request_id", request_id)
                    if message["status"] >= 500:
                        self.telemetry.failed(span)
                await send(message)

            try:
                await self.app(scope, receive, reply)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes({"http.request.method": scope["method"], "http.route": route})
