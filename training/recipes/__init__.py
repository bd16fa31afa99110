"""Recipes: configurations as TOML files, by name (those of this folder) or by path (your own)."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

from embeddings.errors import ConfigError, unknown_name
from training.config import Config, parse_config


def list_recipes() -> list[str]:
    """Names of the recipes that ship with the package, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")
    )


def load_recipe(name_or_path: str | Path) -> Config:
    """Read a recipe: a shipped one by its name, or any file that ends in `.toml`.

    Raises `ConfigError` that names the file and the key; an unknown name lists the recipes there are.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        text, where = _read(path), str(path)
    else:
        known = list_recipes()
        if str(name_or_path) not in known:
            error = unknown_name("recipe", str(name_or_path), known)
            raise ConfigError(error.message + " (a file of your own ends in .toml)", field="recipe")
        where = f"recipe '{name_or_path}'"
        text = (files(__name__) / f"{name_or_path}.toml").read_text(encoding="utf-8")
    try:
        return parse_config(tomllib.loads(text), where=where)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}", field="recipe") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"recipe {path} cannot be read: {reason}", field="recipe") from None
