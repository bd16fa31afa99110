"""Metrics in Prometheus' format, for all replicas of a node at once.

Every replica counts into memory-mapped files of one folder (prometheus_client's multi-process mode), so that whichever
replica is asked answers for all of them. The folder must be in the environment before this module is first imported;
without it the figures are those of one process. Labels are bounded: stage and route names, never ids.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REGISTRY = CollectorRegistry()

REQUESTS = Counter(
    "bespoke_requests_total", "Requests by route and status.", ["route", "method", "status"], registry=REGISTRY
)
LATENCY = Histogram(
    "bespoke_request_seconds", "Time to answer, by route.", ["route"], buckets=SECONDS, registry=REGISTRY
)
STAGE = Histogram(
    "bespoke_stage_seconds", "Time spent in a stage of the pipeline.", ["stage"], buckets=SECONDS, registry=REGISTRY
)
DEGRADED = Counter("bespoke_degraded_total", "Answers that had to do without a stage.", ["stage"], registry=REGISTRY)
EVENTS = Counter("bespoke_events_total", "Events by outcome.", ["outcome"], registry=REGISTRY)
ITEMS = Gauge("bespoke_items", "Items of the catalogue in service.", registry=REGISTRY, multiprocess_mode="mostrecent")
READY = Gauge(
    "bespoke_ready_replicas", "Replicas with a release in service.", registry=REGISTRY, multiprocess_mode="livesum"
)


def exposition() -> tuple[bytes, str]:
    """All metrics as text, and its content type."""
    registry = REGISTRY
    if os.environ.get(FOLDER):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
