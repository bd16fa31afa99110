"""Every error that Bespoke raises on purpose, in one tree.

    BespokeError
    ├── InputError            the caller's mistake: names the field, says what is allowed
    │   ├── NotFound          an id, a release or a document that is not there
    │   ├── Conflict          it exists already, or in another state than the caller believes
    │   ├── Expired           it was there, and its time is over
    │   └── ConfigError       a recipe, a setting or a command-line option
    ├── DataError             a file that is not what its name says, or too many bad rows
    ├── BundleError           a corrupt, foreign, truncated or unfinished model release
    ├── TrainingError         a non-finite loss, a checkpoint of another run, a missing device
    ├── GateError             publishing refused: the measured reasons
    ├── StoreError            the database cannot be reached or refused to write
    │   └── Damaged           a stored record is not what was written
    └── Unavailable           a port is taken, a deployment is gone, no model is loaded
        └── Overloaded        more work waits than can be done in time

`code` is the stable name of the error in the HTTP answer `{"error": {"code", "message", "field"}}`; `status` is the
HTTP status it becomes there.
"""

from __future__ import annotations

from collections.abc import Iterable

from embeddings.sentences import near


class BespokeError(Exception):
    """Base of every deliberate error: `message` is a sentence for people, `field` names the culprit if there is one."""

    code = "internal"
    status = 500

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InputError(BespokeError, ValueError):
    """The caller's mistake; nothing was changed."""

    code = "invalid_input"
    status = 422

    def within(self, place: str) -> InputError:
        """The same error, of something that stands at `place` in what the caller sent."""
        if self.field is None or not self.message.startswith(f"{self.field}: "):
            message = f"{place}: {self.message}"
        else:
            message = f"{place}.{self.message}"
        return type(self)(message, field=place if self.field is None else f"{place}.{self.field}")


class NotFound(InputError):
    """Something named by the caller does not exist."""

    code = "not_found"
    status = 404


class Conflict(InputError):
    """Something exists already, or is in a state that does not allow the change."""

    code = "conflict"
    status = 409


class Expired(InputError):
    """Something the caller was given is not good any more."""

    code = "expired"
    status = 410


class ConfigError(InputError):
    """A recipe, a setting or an option is wrong."""

    code = "invalid_configuration"


class DataError(BespokeError):
    """A data file cannot be trusted."""

    code = "invalid_data"
    status = 422


class BundleError(BespokeError):
    """A model release cannot be trusted; the one in service stays."""

    code = "invalid_bundle"
    status = 409


class TrainingError(BespokeError):
    """Training cannot go on; the last checkpoint stays valid."""

    code = "training_failed"


class GateError(BespokeError):
    """Publishing was refused; `reasons` lists every gate that did not hold."""

    code = "gate_failed"
    status = 409

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("not published: " + "; ".join(self.reasons))


class StoreError(BespokeError):
    """The store did not take a write or could not answer; nothing was acknowledged."""

    code = "store_unavailable"
    status = 503


class Damaged(StoreError):
    """A stored record is not what was written; asking again will not help."""

    code = "record_damaged"
    status = 500


class Unavailable(BespokeError):
    """A resource the service needs is not there right now."""

    code = "unavailable"
    status = 503


class Overloaded(Unavailable):
    """More work waits than can be done in time; nothing was done, and soon there will be room."""

    code = "overloaded"
    status = 429


def unknown_name(kind: str, name: str, known: Iterable[str], *, field: str | None = None) -> InputError:
    """Build the error for a name that is not known; the message lists those that are, nearest first.

    >>> unknown_name("attribute", "colour", ["color", "size"]).message
    "unknown attribute 'colour'; did you mean 'color'? known: color, size"
    """
    names = sorted(known)
    hint = near(name, names) or ";"
    shown = ", ".join(names[:40]) + (", …" if len(names) > 40 else "") if names else "none"
    return InputError(f"unknown {kind} '{name}'{hint} known: {shown}", field=field)
