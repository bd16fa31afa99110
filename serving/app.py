"""`build`: settings in, a Ray Serve application out. `serve run ray_config.yaml` and `bespoke serve` both end here."""

from __future__ import annotations

import logging
import os
from typing import Any

from ray.serve import Application

from serving.deployments import Fused, Ingress, Ranking, Retrieval, Rules
from serving.settings import Settings
from serving.telemetry import Telemetry

logger = logging.getLogger("bespoke.app")


def build(args: dict[str, Any]) -> Application:
    """The application for some settings; `args` are arguments as in `Settings.load`."""
    settings = Settings.load(args)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        logger.warning(
            "the fast profile is off and every request will take many times longer; start with "
            'eval "$(bespoke environment)" before Ray is started, or use `bespoke serve`'
        )
    telemetry = Telemetry.of(settings)  # what it needs is missed now, and not by a replica
    if telemetry is not None:
        telemetry.close()
    given = settings.model_dump(mode="json")
    entry = options(settings)
    if settings.topology == "fused":
        return bound(Fused, entry, given)
    inner = {name: value for name, value in entry.items() if name != "max_queued_requests"}
    ranking = inner | {"ray_actor_options": {"num_cpus": settings.replica_cpus, "num_gpus": settings.ranking_gpus}}
    sections = (bound(Retrieval, inner, given), bound(Ranking, ranking, given), bound(Rules, inner, given))
    return bound(Ingress, entry, given, *sections)


def bound(deployment: Any, given: dict[str, Any], *args: Any) -> Application:
    """A deployment with its options and the arguments of its class."""
    application: Application = deployment.options(**given).bind(*args)
    return application


def options(settings: Settings) -> dict[str, Any]:
    """Options of a deployment; what is not here is set per deployment in `ray_config.yaml`."""
    return {
        "num_replicas": settings.replicas,
        "max_ongoing_requests": settings.max_ongoing,
        "max_queued_requests": settings.max_queued,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        # A roll-out starts the new replica before the old one goes; with one replica there would be a gap.
        "max_surge_percent": 100,
        "health_check_period_s": 5,
        "health_check_timeout_s": 10,
        "graceful_shutdown_timeout_s": 5,
        "graceful_shutdown_wait_loop_s": 0.1,
        "ray_actor_options": {"num_cpus": settings.replica_cpus},
    }
