"""Releases: which one is in service, which one is on trial, and how either is taken back.

The pointer file says which release is current, because training publishes without knowing the store. What is tried, and
what was withdrawn and why, are documents of the store, one a release: versioned, audited, and the same for all replicas.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from embeddings.bundle_reader import open_bundle
from embeddings.errors import BundleError, Conflict, NotFound
from embeddings.manifest import read_manifest
from embeddings.releases import current_release, list_releases, point_to
from serving.pipeline.trial import Share
from serving.store import Document, Documents

RELEASE = "release"
Mode = Literal["canary", "shadow"]
MODES: tuple[Mode, ...] = ("canary", "shadow")


class Tried(NamedTuple):
    """The trial that a document asks for."""

    name: str
    mode: Mode
    how: Share
    version: int


def tried(documents: Iterable[Document]) -> Tried | None:
    """The trial in force: the one asked for last."""
    asked = [one for one in documents if one.kind == RELEASE and one.body.get("state") in MODES]
    if not asked:
        return None
    last = max(asked, key=lambda one: one.version)
    body = last.body
    return Tried(last.id, body["state"], Share(share=body["share"], goal=body["goal"]), last.version)


class Releases:
    """What an operator may do with the releases of a folder; `by` goes into the audit."""

    def __init__(self, folder: Path, documents: Documents) -> None:
        self.folder, self._documents = folder, documents

    def list(self) -> list[dict[str, Any]]:
        """Every release, newest first, with its state: current, canary, shadow, withdrawn or idle."""
        return described(self.folder, self._documents.list(RELEASE))

    def promote(self, name: str, *, by: str) -> None:
        """Verify a release and make it the current one; a trial of it is over. Raises `BundleError`, `NotFound`."""
        open_bundle(self.folder / _plain(name))
        self._documents.put(RELEASE, name, {"state": "promoted"}, by=by)
        point_to(self.folder, name)

    def try_out(self, name: str, mode: Mode, how: Share, *, by: str) -> Document:
        """Begin a trial, in the place of another one if there is one. Raises `BundleError`, `NotFound`, `Conflict`."""
        if name == current_release(self.folder):
            raise Conflict(f"release '{name}' is the current one; a trial needs another", field="name")
        open_bundle(self.folder / _plain(name))
        running = tried(self._documents.list(RELEASE))
        if running is not None and running.name != name:
            self._documents.put(RELEASE, running.name, {"state": "idle"}, by=by)
        return self._documents.put(RELEASE, name, {"state": mode} | how.model_dump(), by=by)

    def rollback(self, *, by: str, reason: str) -> tuple[str, str]:
        """Withdraw the trial if there is one, else go back to the release before the current one.

        Returns the names of the release that was withdrawn and of the current one. Raises `Conflict` if there is
        nothing to go back to, `BundleError` if that is not sound; nothing has changed then.
        """
        current = current_release(self.folder)
        running = tried(self._documents.list(RELEASE))
        if running is not None:
            self._withdraw(running.name, reason, by=by)
            return running.name, current or ""
        withdrawn = {one.id for one in self._documents.list(RELEASE) if one.body.get("state") == "withdrawn"}
        before = [name for name in list_releases(self.folder) if current and name < current and name not in withdrawn]
        if current is None or not before:
            raise Conflict("there is no release before the current one to go back to")
        open_bundle(self.folder / before[-1])
        self._withdraw(current, reason, by=by)
        point_to(self.folder, before[-1])
        return current, before[-1]

    def withdraw(self, trial: Tried, reason: str, *, by: str) -> bool:
        """End a trial for a reason; False if it is not in force any more, because somebody else was faster."""
        try:
            self._withdraw(trial.name, reason, by=by, expected=trial.version)
        except Conflict:
            return False
        return True

    def _withdraw(self, name: str, reason: str, *, by: str, expected: int | None = None) -> None:
        body = {"state": "withdrawn", "reason": reason}
        self._documents.put(RELEASE, name, body, by=by, why=reason, expected_version=expected)


def described(folder: Path, notes: Iterable[Document]) -> list[dict[str, Any]]:
    """Every release of a folder as `Releases.list` has it, with the documents that tell what is tried or withdrawn."""
    current = current_release(folder)
    by_name = {one.id: one for one in notes}
    return [_described(folder, name, current, by_name.get(name)) for name in reversed(list_releases(folder))]


def _described(folder: Path, name: str, current: str | None, note: Document | None) -> dict[str, Any]:
    body = note.body if note is not None else {}
    state = "current" if name == current else body.get("state", "idle")
    found: dict[str, Any] = {
        "name": name,
        "state": "idle" if state == "promoted" else state,
        "share": body.get("share"),
        "goal": body.get("goal"),
        "reason": body.get("reason"),
        "changed_at": note.updated_at if note is not None else None,
        "created_at": None,
        "items": None,
        "metrics": {},
        "problem": None,
    }
    try:
        manifest = read_manifest(folder / name)
    except BundleError as error:
        return found | {"problem": error.message}
    created: datetime = manifest.created_at
    return found | {"created_at": created, "items": manifest.counts.get("items"), "metrics": manifest.metrics}


def _plain(name: str) -> str:
    """A name that is a folder's own, never a path out of it."""
    if name != Path(name).name or name.startswith("."):
        raise NotFound(f"'{name[:80]}' is not the name of a release", field="name")
    return name
