"""One release in memory, with the catalogue, the policy and the demand that the store has now.

A replica holds the current release and at most one other that is on trial. Each has its own view of the store, because rows
are those of a release, and its own circuits, so that a bad ranking model on trial does not switch off the one in service.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence

from embeddings.bundle import Bundle
from serving import metrics
from serving.pipeline.circuit import Circuit
from serving.pipeline.pipeline import SECTIONS, SOURCES
from serving.policy.compiled import KINDS, Policy
from serving.policy.layers import EXPERIMENTS
from serving.request.catalogue import Catalogue
from serving.request.snapshot import Snapshot
from serving.stages.dial import prepare
from serving.store import Document, Store

logger = logging.getLogger("bespoke.live")

CHANGES_AT_ONCE = 10_000
Demand = Mapping[str, Mapping[str, float]]


class Live:
    """A release that follows the store. One thread changes it; `snapshot` may be read from any."""

    def __init__(
        self, bundle: Bundle, store: Store, *, version: int, documents: Sequence[Document], demand: Demand
    ) -> None:
        self.store = store
        self.circuits = {section: Circuit(f"{section} of {bundle.name}") for section in SECTIONS}
        revision, catalogue = self._caught_up(Catalogue.of_bundle(bundle), 0)
        policy = _compiled(catalogue, version, documents)
        self.snapshot = _ready(
            Snapshot(
                catalogue=catalogue,
                policy=policy,
                base_policy=policy.bind(catalogue.base.columns),
                delta_policy=policy.bind(catalogue.delta.columns),
                live_trend=_trend(bundle, demand),
                sources=SOURCES,
                revision=revision,
            )
        )

    @property
    def name(self) -> str:
        """Name of the release."""
        return self.snapshot.bundle.name

    def aside(self) -> Live:
        """The same release as it is now, with circuits of its own: what is tried on it switches nothing off here."""
        other = copy.copy(self)
        other.circuits = {section: Circuit(f"{section} of {self.name}, aside") for section in SECTIONS}
        return other

    def take_changes(self, version: int, documents: Sequence[Document]) -> None:
        """Encode and index what changed in the store's catalogue."""
        old = self.snapshot
        revision, catalogue = self._caught_up(old.catalogue, old.revision)
        changes: dict[str, object] = {"catalogue": catalogue, "revision": revision}
        if catalogue.attributes == old.catalogue.attributes:
            changes["delta_policy"] = old.policy.bind(catalogue.delta.columns)
            self._put(**changes)
        else:  # a rule may have become valid, or may not be any more
            self._put(**changes, **_bound(_compiled(catalogue, version, documents), catalogue))

    def take_policy(self, version: int, documents: Sequence[Document]) -> None:
        """Put the documents of a version in force."""
        catalogue = self.snapshot.catalogue
        self._put(**_bound(_compiled(catalogue, version, documents), catalogue))

    def take_demand(self, demand: Demand) -> None:
        """Weigh the latest events anew."""
        self._put(live_trend=_trend(self.snapshot.bundle, demand))

    def _caught_up(self, catalogue: Catalogue, revision: int) -> tuple[int, Catalogue]:
        while True:
            changes = self.store.catalogue.changes(revision, CHANGES_AT_ONCE)
            if not changes.upserted and not changes.deleted:
                return max(revision, changes.revision), catalogue
            catalogue = catalogue.changed(changes.upserted, changes.deleted)
            revision = changes.revision

    def _put(self, **changes: object) -> None:
        # Not dataclasses.replace: the cached columns of the old snapshot must not travel into the new one.
        old = self.snapshot
        fields = {name: getattr(old, name) for name in Snapshot.__dataclass_fields__}
        self.snapshot = _ready(Snapshot(**(fields | changes)))


def _ready(snapshot: Snapshot) -> Snapshot:
    """Compute what requests share before one asks for it: the event loop may have to answer from the demand at once."""
    snapshot.trending  # noqa: B018 - cached by being read
    policy = snapshot.policy
    prepare(snapshot.catalogue, [*policy.placements.values(), *policy.of(EXPERIMENTS).placements])
    return snapshot


def policy_of(documents: Sequence[Document], *, version: int, item_attributes: Collection[str] | None) -> Policy:
    """Compile the stored documents of a version."""
    by_kind = {kind.name: [one.body for one in documents if one.kind == kind.name] for kind in KINDS}
    return Policy.compile(by_kind, version=version, item_attributes=item_attributes)


def _compiled(catalogue: Catalogue, version: int, documents: Sequence[Document]) -> Policy:
    policy = policy_of(documents, version=version, item_attributes=catalogue.attributes)
    for problem in policy.problems:
        logger.error("%s '%s' does not fit: %s", problem.kind, problem.id, problem.message)
    metrics.PROBLEMS.set(len(policy.problems))
    return policy


def _bound(policy: Policy, catalogue: Catalogue) -> dict[str, object]:
    return {
        "policy": policy,
        "base_policy": policy.bind(catalogue.base.columns),
        "delta_policy": policy.bind(catalogue.delta.columns),
    }


def _trend(bundle: Bundle, demand: Demand) -> dict[str, float]:
    spec = bundle.spec
    return {
        item_id: sum(max(0.0, spec.event_kind(name).weight) * count for name, count in by_type.items())
        for item_id, by_type in demand.items()
    }
