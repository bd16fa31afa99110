"""Metrics in Prometheus' format, for all replicas of a node at once.

Every replica counts into memory-mapped files of one folder (prometheus_client's multi-process mode), so that whichever
replica is asked answers for all of them. The folder must be in the environment before this module is first imported;
without it the figures are those of one process. Labels are bounded: stage and route names, never ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

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


def exposition() -> tuple[bytes, str]:
    """All metrics as text, and its content type."""
    if not os.environ.get(FOLDER):
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    registry = CollectorRegistry()
    registry.register(_OursOnly())
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _OursOnly(Collector):
    """Ray's own processes inherit the folder and count into it too; they have an exporter of their own."""

    def collect(self) -> Iterator[Metric]:
        found = multiprocess.MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]
        return (metric for metric in found if metric.name.startswith("bespoke_"))
