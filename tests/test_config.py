"""Configurations and recipes: what they accept, and what they say about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from embeddings.errors import ConfigError
from training.config import Config, Run, parse_config, parse_run
from training.recipes import list_recipes, load_recipe


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_loads_and_survives_json(name: str) -> None:
    config = load_recipe(name)
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_recipes_say_what_their_names_promise() -> None:
    assert {"default", "movielens", "quick"} <= set(list_recipes())
    shop = load_recipe("default")
    assert shop.features.text_buckets
    assert shop.features.context_buckets
    assert {"view", "click", "cart", "purchase"} <= {name for name, kind in shop.event_types.items() if kind.positive}
    assert list(load_recipe("movielens").event_types) == ["rating"]


def test_a_file_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "my recipe.toml"
    path.write_text("[towers]\ndim = 8\n[event_types.view]\nweight = 2\n[ranker]\nobjectives = ['view']\n")
    config = load_recipe(path)
    assert config.towers.dim == 8
    assert config.event_types["view"].weight == 2
    assert config.towers.layers == Config().towers.layers


@pytest.mark.parametrize(
    ("raw", "field", "message"),
    [
        ({"tower": {}}, "tower", "did you mean 'towers'"),
        ({"towers": {"dims": 8}}, "towers.dims", r"did you mean 'towers.dim'.*towers.dropout"),
        ({"ranker": {"size": 8}}, "ranker.size", r"known: ranker.candidates, ranker.dropout"),
        ({"event_types": {"view": {"wait": 1}}}, "event_types.view.wait", r"event_types.view.weight"),
        ({"optimisation": {"epochs": -1}}, "optimisation.epochs", "greater than or equal to 0"),
        ({"optimisation": {"epochs": 0}}, None, "optimisation.epochs: 0 trains nothing, unless a spectrum begins"),
        ({"loss": {"temperature": 0}}, "loss.temperature", "greater than 0"),
        ({"towers": {"dim": 10, "heads": 4}}, "towers", "dim 10 is not divisible by heads 4"),
        ({"event_types": {"skip": {"positive": False}}}, None, "at least one type must be positive"),
        ({"ranker": {"objectives": ["buy"]}}, None, "'buy' is none of event_types"),
    ],
)
def test_mistakes_are_named(raw: dict[str, object], field: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(raw, where="here")
    assert caught.value.field == field
    assert caught.value.message.startswith("here: ")


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'movielens'.*default.*ends in \.toml"):
        load_recipe("movielense")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[towers\n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load_recipe(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device"),
        ({"seed": -1}, "seed"),
        ({"resume": True}, "resume needs checkpoints"),
        ({"max_minutes": 0}, "max_minutes"),
        ({"speed": 3}, "known: checkpoint_seconds, checkpoints, compile, device"),
    ],
)
def test_run_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_run(**options)


def test_configurations_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().towers.dim = 8
    assert parse_run(device="cuda:1", seed=3) == Run(device="cuda:1", seed=3)
