"""Options that several commands of the service share, and the store that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.settings import Settings
from serving.store import Store

COMMAND_LINE = "command line"
"""Who changed something, in the audit."""


def described(name: str) -> str:
    """The one description of a setting, for the help of its option."""
    return Settings.model_fields[name].description or ""


StoreUrl = Annotated[str | None, typer.Option("--store", help=described("store"))]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]


def open_store(store: str | None, config: Path | None) -> Store:
    """The store of the settings; an option wins over the file. Raises as `Settings.load` and `Store.open` do."""
    return Store.open(Settings.load({"store": store}, file=config).store)
