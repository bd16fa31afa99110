"""The front door: `bespoke`, one command line over training and serving.

A command is imported when it is run, so that help answers at once, training needs no Ray, and serving no training. Every
deliberate error becomes one sentence on stderr and exit code 1; a mistyped command or option is exit code 2.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
import typer.main

from embeddings.errors import Unavailable, unknown_name
from training.cli import Commands, DataDir, Format, activity, output

if TYPE_CHECKING:
    from training.sources import Data

COMMANDS = {
    "data": ("training.cli", "Get, make and check data."),
    "train": ("training.cli", "Train the towers and the ranking model into a run folder."),
    "evaluate": ("training.cli", "Print the table of baselines, towers and ranking model on the test targets."),
    "publish": ("training.cli", "Turn a run into the release in service, if its gates hold."),
    "serve": ("serving.cli", "Serve until Ctrl-C: every answer follows the last event."),
    "release": ("serving.cli", "List, try, promote and take back releases."),
    "stop": ("serving.cli", "Stop the service on a port, also one whose command line was killed."),
    "recommend": ("serving.ask", "Ask a running service for a person's list."),
    "export": (
        "serving.upkeep",
        "Write what happened since the last export to Parquet, for `bespoke train --data-dir`.",
    ),
    "retain": (
        "serving.upkeep",
        "Delete old events and decisions; people keep the history that their lists are made of.",
    ),
    "batch": (
        "serving.batch",
        "Write messages for everybody who may get one: lists, reasons and what is due, as the service would answer them.",
    ),
    "policy": ("serving.estimates", "Judge a change of the policy by the log, before anybody is shown it."),
    "members": ("serving.members", "Write the ids of the people who are in a segment now to a Parquet file."),
    "keys": ("serving.keys", "Make, list and revoke API keys."),
    "capacity": (
        "serving.capacity",
        "Compute memory, cores, replicas and disk for a catalogue and a load, from measured figures.",
    ),
    "doctor": (
        "serving.doctor.command",
        "Look at the machine, the ports, the store and the release, and say what to do; 1 if something must be mended.",
    ),
    "metrics": (
        "serving.exporter",
        "Show the metrics of this node's replicas on a port of their own, until Ctrl-C.",
    ),
    "environment": ("serving.cli", "Print the fast profile as shell exports, for `serve run`."),
}
"""Module of every command that lives in one, and its line of help; a test compares it with the command's own."""

EXTRAS = {"training": "train", "serving": "serve"}
"""What a package's commands need beyond the plain installation."""

DEMO_RECIPES = {"shop": "default", "movielens": "movielens"}


class Deferred(typer.core.TyperCommand):
    """A command that is known by name and help, and imported when it is run."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Hand over to the real command."""
        assert self.name is not None
        return resolve(self.name).make_context(info_name, args, parent=parent, **extra)


class FrontDoor(Commands):
    """The commands of all packages beside those of this file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, (_, text) in COMMANDS.items():
            self.add_command(Deferred(name=name, help=text), name)


def resolve(name: str) -> Any:
    """Import a command; raises `Unavailable` with the extra to install if something it needs is not there."""
    module = COMMANDS[name][0]
    try:
        app = importlib.import_module(module).app
    except ModuleNotFoundError as error:
        extra = EXTRAS[module.partition(".")[0]]
        raise Unavailable(
            f"'bespoke {name}' needs {error.name}, which is not installed: pip install 'bespoke[{extra}]'"
        ) from error
    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


app = typer.Typer(
    cls=FrontDoor,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A recommender service: train, publish and serve a list for every person.",
)


def _version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"bespoke {version('bespoke')}")
        except PackageNotFoundError:
            typer.echo("bespoke, not installed")
        raise typer.Exit


@app.callback()
def front(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Nothing happens before a command."""


@app.command()
def demo(
    dataset: Annotated[str, typer.Option(help="shop (simulated) or movielens.")] = "shop",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of MovieLens; downloaded if left out.")] = None,
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("var/demo"),
    recipe: Annotated[str | None, typer.Option(help="Recipe; the data set's own if left out.")] = None,
    items: Annotated[int, typer.Option(help="Items of the shop.")] = 2000,
    users: Annotated[int, typer.Option(help="Shoppers.")] = 2000,
    port: Annotated[int, typer.Option(help="Port to serve on.")] = 8000,
    again: Annotated[bool, typer.Option("--again", help="Begin anew, even if nothing has changed.")] = False,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="End when everything is ready to serve.")] = False,
) -> None:
    """Make data, train, publish and serve, in one go; the second time it only serves."""
    if dataset not in DEMO_RECIPES:
        raise unknown_name("data set", dataset, DEMO_RECIPES, field="dataset")
    resolve("serve")  # a missing extra is said now, not after the training
    home = folder / dataset
    asked = {
        "data_dir": str(data_dir.resolve()) if data_dir else None,
        "recipe": recipe or DEMO_RECIPES[dataset],
        "items": items,
        "users": users,
    }
    if again or not _is_made(home, asked):
        _make(home, dataset, asked)
    store = f"sqlite:///{home / 'store.db'}"
    where = f"export BESPOKE_RELEASES={shlex.quote(str(home / 'releases'))} BESPOKE_STORE={shlex.quote(store)}"
    output().print(
        f"the other commands find it by  {where}\nand the training by  --run {shlex.quote(str(home / 'run'))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if not no_serve:
        from serving.cli import serve_settings
        from serving.settings import Settings

        given = {"releases": home / "releases", "store": store, "port": port}
        serve_settings(Settings.load(given), user_id=(home / "someone").read_text(encoding="utf-8"))


@app.command()
def load(
    data_dir: DataDir,
    format: Format = "auto",  # noqa: A002 - the word that people look for
    store: Annotated[str | None, typer.Option(help="Store to fill; that of the settings if left out.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Fill the store that the service reads: a catalogue, people, and what they did so far; twice is as good as once."""
    from serving.settings import Settings
    from training.sources import read

    url = Settings.load({"store": store}, file=config).store
    with activity() as say:
        say("data", 0.0)
        data = read(data_dir, format=format)
        done = _fill_store(url, data, say)
    output().print(
        f"{done['items']:,} items, {done['users']:,} people and {done['events']:,} events loaded; "
        f"{done['known_events']:,} events were there before, {data.counts.quarantined:,} rows refused",
        highlight=False,
        soft_wrap=True,
    )


def _is_made(home: Path, asked: dict[str, Any]) -> bool:
    """Whether an earlier demo came to its end with the same options: `demo.json` is written last."""
    note = home / "demo.json"
    return note.is_file() and json.loads(note.read_bytes()) == asked


def _make(home: Path, dataset: str, asked: dict[str, Any]) -> None:
    from training.config import parse_run
    from training.publish import publish
    from training.recipes import load_recipe
    from training.runs import Source, train_run
    from training.sources import read

    config = load_recipe(asked["recipe"])
    _clear(home)
    with activity() as say:
        say("data", 0.0)
        source = Source(path=_data(home, dataset, asked))
        run = train_run(home / "run", source, config, parse_run(checkpoints=home / "run"), say=say)
        published = publish(run, home / "releases", say=lambda text: say(text, 1.0))
        _fill_store(f"sqlite:///{home / 'store.db'}", read(source.path), say)
    (home / "someone").write_text(run.data.users.id(0), encoding="utf-8")
    (home / "demo.json").write_text(json.dumps(asked), encoding="utf-8")
    for name in ("popularity", "item_knn", "two_tower"):
        found = published.figures[name]
        output().print(
            f"validation {name:10}  recall@10 {found['recall@10']:.4f}  ndcg@10 {found['ndcg@10']:.4f}", highlight=False
        )


def _clear(home: Path) -> None:
    """Remove what an earlier demo made, and nothing else."""
    (home / "demo.json").unlink(missing_ok=True)
    for name in ("data", "run", "releases"):
        shutil.rmtree(home / name, ignore_errors=True)
    for path in home.glob("store.db*"):
        path.unlink()


def _data(home: Path, dataset: str, asked: dict[str, Any]) -> Path:
    """Folder of the data set, made or downloaded where it is not given."""
    if asked["data_dir"]:
        return Path(asked["data_dir"])
    if dataset == "movielens":
        from training.sources import get

        return get("movielens-small", home / "download")
    from training.shop import Shop

    # The shop's last day is today, so that there are trends and new arrivals to be seen.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Shop(items=asked["items"], users=asked["users"], end=today).write(home / "data")


def _fill_store(url: str, data: Data, say: Callable[[str, float], None]) -> dict[str, int]:
    """Give a store the catalogue, the people and the events of some data; returns what it has of them, by kind."""
    from serving.store import Store
    from serving.store.load import load_tables

    rows = data.items.num_rows + data.users.num_rows + data.events.num_rows
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        say("loading the store", done / rows)

    with Store.open(url) as store:
        return load_tables(store, items=data.items, users=data.users, events=data.events, progress=progress)


def main() -> None:
    """Run the command line."""
    app(prog_name="bespoke")


if __name__ == "__main__":
    main()
