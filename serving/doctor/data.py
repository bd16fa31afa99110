"""What the service reads and writes: the store, the release in service, the keys."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from sqlalchemy import select, text

from embeddings.bundle import Bundle
from embeddings.bundle_reader import open_bundle
from embeddings.errors import BespokeError, BundleError, ConfigError, Damaged, StoreError
from embeddings.releases import current_release, list_releases
from serving.doctor.finding import Findings, ok, problem, warning
from serving.doctor.machine import existing
from serving.settings import Settings
from serving.store.database import Database, file_of
from serving.store.examine import examine
from serving.store.keys import Keys
from serving.store.migrations import state
from serving.store.tables import ITEMS

EXAMINE_S = 15.0
WAIT_S = 5.0
REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "ceph", "lustre"})
RESTORE = "restore it from a copy, or export what can be read and begin a new one"


def store_file(settings: Settings) -> Path | None:
    """The file of an SQLite store; None for PostgreSQL, or for a URL that is none."""
    try:
        return file_of(settings.store)
    except ConfigError:  # `store` says what is wrong with it
        return None


def store(settings: Settings) -> Findings:
    """The store: reachable, of this version, whole, durable. A store that is not there is not made."""
    file = store_file(settings)
    if file is not None:
        folder = existing(file)
        if _filesystem(folder) in REMOTE:
            yield problem(
                "store", f"{folder} is on a network file system", "SQLite needs a local disk there; or use PostgreSQL"
            )
        if not os.access(folder, os.W_OK):
            yield problem("store", f"{folder} may not be written", "give this user the right to, or set `store`")
        if not file.exists():
            yield ok("store", f"none yet; it is made at {file} at the first start")
            return
    try:
        database = Database(settings.store, wait_s=WAIT_S)
    except BespokeError as error:
        yield problem("store", error.message, "set `store` to sqlite:///FILE or postgresql://USER@HOST/DATABASE")
        return
    try:
        yield from _opened(settings, database)
    except Damaged as error:
        yield problem("store", error.message, RESTORE)
    except StoreError as error:
        yield problem("store", error.message, "start the database, or set `store` to where it is")
    finally:
        database.close()


def _opened(settings: Settings, database: Database) -> Findings:
    found, newest, known = state(database)
    if found is None:
        yield ok("store", f"{database.where} answers and is empty; its tables are made at the first start")
        return
    if not known:
        yield problem("store", f"its tables are of a newer version ({found})", "update this installation")
        return
    if found != newest:
        yield warning(
            "store", f"its tables are of step {found}, this version has {newest}", "the next start brings them up"
        )
        return
    if database.embedded:
        whole = examine(database, EXAMINE_S)
        told = (
            "every table agrees with its indexes" if whole else f"nothing wrong in the first {EXAMINE_S:g} s of looking"
        )
        yield ok("store", f"{database.where} answers; {told}")
    else:
        yield ok("store", f"{database.where} answers")
        yield from _durable(database)
    if database.read(lambda connection: connection.execute(select(ITEMS.c.item_id).limit(1)).first()) is None:
        yield warning(
            "store", "no item was ever written to it", "`bespoke load --data-dir DIR` fills it, or send POST /v1/items"
        )
    if settings.protected and not Keys(database).active():
        yield warning(
            "keys", "keys are needed and there is none", "`bespoke keys create --name ADMIN --scope admin` makes one"
        )


def _durable(database: Database) -> Findings:
    """What PostgreSQL must not have switched off if an acknowledged event is to be on disk."""
    for name in ("fsync", "full_page_writes"):
        if _shown(database, name) == "off":
            yield problem(
                "store", f"PostgreSQL has {name} off: a power failure loses or breaks data", f"set {name} = on there"
            )


def _shown(database: Database, name: str) -> str:
    return str(database.read(lambda connection: connection.execute(text(f"SHOW {name}")).scalar_one()))


def release(settings: Settings) -> Findings:
    """The release in service: pointer, checksums, golden queries, and what it was made with."""
    try:
        name = current_release(settings.releases)
    except BundleError as error:
        yield problem("release", error.message, "`bespoke release promote NAME` writes the pointer anew")
        return
    if name is None:
        others = list_releases(settings.releases)
        yield warning(
            "release",
            f"none in service in {settings.releases}" + (f", {len(others)} are there" if others else ""),
            f"`bespoke release promote {others[-1]}`" if others else "`bespoke demo`, or train and publish one",
        )
        return
    try:
        bundle = open_bundle(settings.releases / name)
    except (BundleError, ConfigError) as error:
        yield problem("release", error.message, "publish it again, or `bespoke release rollback`")
        return
    except BespokeError as error:
        yield problem("release", f"the pointer names {name}: {error.message}", "`bespoke release promote NAME`")
        return
    yield ok("release", f"{name}: {len(bundle.items):,} items, checksums and golden queries hold")
    yield from _about(bundle)


def _about(bundle: Bundle) -> Findings:
    import faiss
    import numpy as np
    import torch

    here = {"torch": str(torch.__version__), "faiss": faiss.__version__, "numpy": np.__version__}
    other = [
        f"{name} {was}, here {here[name]}"
        for name, was in bundle.manifest.versions.items()
        if name in here and was.partition(".")[0] != here[name].partition(".")[0]
    ]
    if other:
        yield warning("release", f"it was made with {'; '.join(other)}", "publish it again with what is installed here")
    if bundle.manifest.overridden:
        yield warning(
            "release",
            f"published although {'; '.join(bundle.manifest.overridden)}",
            "look at `bespoke evaluate --report`",
        )
    if not bundle.manifest.files.get("golden.json"):
        yield warning("release", "it has no golden queries", "publish it again: they show that an answer is sound")


def _filesystem(path: Path) -> str:
    """Type of the file system that a path lies on."""
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path.absolute(), *path.absolute().parents) if folder in mounts), "")
