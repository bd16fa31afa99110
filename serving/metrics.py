"""Metrics in Prometheus' format, for all replicas of a node at once.

Every replica counts into memory-mapped files of one folder (prometheus_client's multi-process mode), so that whichever
replica is asked answers for all of them. The folder must be in the environment before this module is first imported;
without it the figures are those of one process. Labels are bounded: stage and route names, never ids.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

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

from embeddings.errors import ConfigError

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
OWNER = "site"
"""File in the folder that says which site counts there."""

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REGISTRY = CollectorRegistry()

if os.environ.get(FOLDER):  # each metric below opens its file in there
    Path(os.environ[FOLDER]).mkdir(parents=True, exist_ok=True)

REQUESTS = Counter(
    "bespoke_requests_total", "Requests by route and status.", ["route", "method", "status"], registry=REGISTRY
)
LATENCY = Histogram(
    "bespoke_request_seconds", "Time to answer, by route.", ["route"], buckets=SECONDS, registry=REGISTRY
)
STAGE = Histogram(
    "bespoke_stage_seconds", "Time spent in a stage of the pipeline.", ["stage"], buckets=SECONDS, registry=REGISTRY
)
stage = cache(STAGE.labels)
"""The histogram of one stage: looking it up by its label at every observation cost as much as observing."""

DEGRADED = Counter("bespoke_degraded_total", "Answers that had to do without a stage.", ["stage"], registry=REGISTRY)
EVENTS = Counter("bespoke_events_total", "Events by outcome.", ["outcome"], registry=REGISTRY)
DECISIONS = Counter(
    "bespoke_decisions_total", "Answers on their way to the decision log, by outcome.", ["outcome"], registry=REGISTRY
)
ITEMS = Gauge("bespoke_items", "Items of the catalogue in service.", registry=REGISTRY, multiprocess_mode="mostrecent")
CIRCUIT = Gauge(
    "bespoke_circuit_open",
    "1 while a part of the service (a section of the release in service, or the store) is left alone after failures.",
    ["part"],
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
REFUSED = Gauge(
    "bespoke_release_refused",
    "1 while a release that should be in service, or on trial, is not sound and another one answers.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
WITHDRAWN = Counter("bespoke_release_withdrawn", "Canaries that were withdrawn automatically.", registry=REGISTRY)
DECIDED = Counter(
    "bespoke_contents_decided_total",
    "Contents decided, by why this variant or why none.",
    ["reason"],
    registry=REGISTRY,
)
ARMS = Counter("bespoke_release_answers", "Answers while a release is on trial.", ["arm", "outcome"], registry=REGISTRY)
PROBLEMS = Gauge(
    "bespoke_policy_problems",
    "Documents of the policy that do not fit the catalogue in service.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)
FRESHNESS = Histogram(
    "bespoke_freshness_seconds",
    "Time from a change to its being in force on a replica, at most: items, policy, release.",
    ["kind"],
    buckets=(*SECONDS, 5.0, 10.0, 30.0),
    registry=REGISTRY,
)
REFRESHED = Gauge(
    "bespoke_refreshed_timestamp_seconds",
    "When a replica last was level with the store and the release pointer.",
    registry=REGISTRY,
    multiprocess_mode="mostrecent",
)


def exposition(site: str | None = None) -> tuple[bytes, str]:
    """All metrics as text, and its content type; with a site every one of them carries it as a label."""
    return generate_latest(collected(site)), CONTENT_TYPE_LATEST


def collected(site: str | None = None) -> CollectorRegistry:
    """A registry whose collection is that of all processes."""
    registry = CollectorRegistry()
    registry.register(_Ours(site))
    return registry


def begin(folder: Path) -> None:
    """Make the folder ready for a service that starts: what an earlier one counted there is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*folder.glob("*.db"), folder / OWNER):
        file.unlink(missing_ok=True)


def claim(site: str | None) -> None:
    """Note that the folder of this process is that of a site; raises `ConfigError` if another one counts there.

    Two sites in one folder would show their counts to each other.
    """
    if not os.environ.get(FOLDER):
        return
    mark = Path(os.environ[FOLDER]) / OWNER
    with contextlib.suppress(FileExistsError), mark.open("x", encoding="utf-8") as file:
        file.write(site or "")
    if mark.read_text(encoding="utf-8") != (site or ""):
        raise ConfigError(
            f"site: another one counts in {mark.parent}; give each application a {FOLDER} of its own in its runtime_env",
            field="site",
        )


class _Ours(Collector):
    """Ray's own processes inherit the folder and count into it too; they have an exporter of their own."""

    def __init__(self, site: str | None) -> None:
        self._site = site

    def collect(self) -> Iterator[Metric]:
        for metric in self._found():
            if metric.name.startswith("bespoke_"):
                if self._site is not None:
                    metric.samples = [one._replace(labels={**one.labels, "site": self._site}) for one in metric.samples]
                yield metric

    def _found(self) -> Iterable[Metric]:
        if not os.environ.get(FOLDER):
            return REGISTRY.collect()
        found: Iterable[Metric] = multiprocess.MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]
        return found
