"""Erasure: one person taken out of everything that the service keeps, and a signed receipt that lists what went."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from embeddings.errors import BespokeError, Conflict
from serving.stages.effects import Effects
from serving.store import Store
from serving.store.export import exported_to, take_out

FLUSH_S = 2.0
"""How long what was just shown is waited for; what another replica logs later is refused by the store."""

EXPORT_S = 5.0
"""How long an export that is running is waited for; the next one takes the person out then."""

PAUSE_S = 0.1


def erase(store: Store, effects: Effects, user_id: str, *, reason: str | None = None) -> dict[str, Any]:
    """Forget the person behind an id, and return the receipt; `reason` stands in it.

    Events, profile, aliases, consent and decisions go in one transaction; then the messages that wait for them, and what
    exports have of them. A folder that cannot be written now counts as `exports_pending`: the next export to it takes
    the person out. Folders of messages that are out of reach count as `messages_pending`: nothing may be sent from those.
    """
    effects.flush(FLUSH_S)
    erased = store.profiles.erase(user_id)
    beside = {"message_files": len({path for one in erased.ids for path in store.batches.forget(one)})}
    beside |= {"messages_pending": store.batches.out_of_reach(), "exported_rows": 0, "exports_pending": 0}
    for folder in exported_to(store):
        try:
            beside["exported_rows"] += _patiently(lambda folder=folder: take_out(store, folder).rows)  # type: ignore[misc]
        except (BespokeError, OSError):
            beside["exports_pending"] += 1
    return store.receipts.sign(erased, beside=beside, reason=reason)


def _patiently(work: Callable[[], int]) -> int:
    until = time.monotonic() + EXPORT_S
    while True:
        try:
            return work()
        except Conflict:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)
