"""Commands of training: data, train, evaluate, publish.

A command reads options, calls one function of this package and shows what came of it. The heavy imports stand inside the
commands, so that help and a mistyped option answer at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from embeddings.errors import BespokeError, ConfigError, Unavailable

if TYPE_CHECKING:
    from embeddings.bundle import Bundle
    from training.about import Source
    from training.evaluate import Evaluation
    from training.loop import Trained
    from training.runs import TrainedRun

DEFAULT_RUN = Path("runs/latest")
DEFAULT_RELEASES = Path("var/releases")


class Commands(typer.core.TyperGroup):
    """A group of commands in which every deliberate error becomes one sentence on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BespokeError as error:
            Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(error.message)}", highlight=False)
            raise typer.Exit(1) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help="Train, evaluate and publish models.")
data_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Get, make and check data.")
app.add_typer(data_app, name="data")

RunFolder = Annotated[Path, typer.Option("--run", help="Folder of the training run.")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="File of events, or folder with events, items and users.")]
Format = Annotated[str, typer.Option(help="auto, movielens, sequences, interactions, csv, jsonl or parquet.")]
Releases = Annotated[Path, typer.Option(help="Folder of releases that the service reads.")]
To = Annotated[Path, typer.Option("--to", help="Folder to write to.")]


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="Public data set, such as movielens-small.")], to: To = Path("data")
) -> None:
    """Download a public data set from its owner and unpack it."""
    from training.sources import get

    folder = get(name, to, progress=output().is_terminal)
    output().print(f"{name} lies in {folder}", highlight=False)


@data_app.command("make-shop")
def data_make_shop(
    to: To,
    items: Annotated[int, typer.Option(help="Items, 200 to 10 million.")] = 2000,
    users: Annotated[int, typer.Option(help="Shoppers.")] = 1000,
    days: Annotated[int, typer.Option(help="Days of events, 1 to 730.")] = 90,
    seed: Annotated[int, typer.Option(help="The same seed gives the same shop.")] = 0,
) -> None:
    """Simulate a shop whose hidden tastes are known, and write it as Parquet."""
    from training.shop import Shop

    with output().status("simulating the shop"):
        Shop(items=items, users=users, seed=seed).write(to, days=days)
    output().print(f"a shop of {items:,} items and {users:,} shoppers over {days} days lies in {to}", highlight=False)


@data_app.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="File of events, or folder with events, items and users.")],
    format: Format = "auto",  # noqa: A002 - the word that people look for
    quarantine: Annotated[Path | None, typer.Option(help="File for refused rows (JSON lines).")] = None,
) -> None:
    """Read data as training would, and count what was kept, refused and doubled."""
    from training.sources import read

    found = read(path, format=format, quarantine=quarantine, progress=output().is_terminal)
    table = Table("", "read", "kept", "quarantined", "duplicates")
    for name, counts in (*found.by_table.items(), ("all", found.counts)):
        row = (counts.read, counts.kept, counts.quarantined, counts.duplicates)
        table.add_row(name, *(f"{count:,}" for count in row))
    output().print(table)
    for bad in found.rejected[:5]:
        output().print(f"{bad.file}, line {bad.line}: {bad.reason}", markup=False, highlight=False)


@app.command()
def train(
    data_dir: DataDir,
    recipe: Annotated[str, typer.Option(help="Name of a shipped recipe, or a file that ends in .toml.")] = "default",
    format: Format = "auto",  # noqa: A002 - the word that people look for
    run: RunFolder = DEFAULT_RUN,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on one machine's CPU.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop the towers after so long; the best epoch stays.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed training stood.")] = False,
    origin: Annotated[
        Path | None, typer.Option("--from", help="Run, release or folder of releases to start from.")
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Train the towers on workers of a Ray cluster.")] = False,
    workers: Annotated[int, typer.Option(help="Workers that share every batch, with --cluster.")] = 2,
) -> None:
    """Train the towers and the ranking model into a run folder."""
    import training.loop
    from training.config import parse_run
    from training.recipes import load_recipe
    from training.runs import Source, train_run
    from training.warm_start import open_origin

    config = load_recipe(recipe)
    options = parse_run(
        device=device, seed=seed, threads=threads, max_minutes=max_minutes, resume=resume, checkpoints=run
    )
    start = open_origin(origin) if origin else None
    with activity() as say:
        source = Source(path=data_dir, format=format)
        trainer = _cluster_trainer(source, workers) if cluster else training.loop.train
        trained = train_run(run, source, config, options, origin=start, trainer=trainer, say=say)
    _show_run(trained)


@app.command()
def evaluate(
    file: Annotated[Path | None, typer.Argument(help="Where the report goes; RUN/report.html if left out.")] = None,
    run: RunFolder = DEFAULT_RUN,
    k: Annotated[
        list[int] | None, typer.Option("-k", "--k", help="Length of the lists; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Compute the table even if the run holds it already.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write one HTML page with every finding.")] = False,
    releases: Releases = DEFAULT_RELEASES,
    cold_start: Annotated[
        bool, typer.Option("--cold-start", help="Train once more without some items and people, and measure those.")
    ] = False,
) -> None:
    """Print the table of baselines, towers and ranking model on the test targets."""
    cutoffs = tuple(dict.fromkeys([10, *(k or ())]))
    if min(cutoffs) < 1:
        raise ConfigError("k must be at least 1", field="k")
    if file is not None and not report:
        raise ConfigError(f"'{file}' is not expected without --report", field="file")
    if cold_start:
        _cold_start(run)
    evaluation = None if again or report else _stored(run, cutoffs)
    if report:
        evaluation = _report(run, file or run / "report.html", releases, cutoffs)
    elif evaluation is None:
        evaluation = _evaluate(run, cutoffs, releases)
    if as_json:
        typer.echo(json.dumps(evaluation.to_json()))
        return
    for cut in evaluation.cutoffs:
        if cut in cutoffs:
            output().print(evaluation.to_rich_table(k=cut))
    if report:
        output().print(f"report in {file or run / 'report.html'}", highlight=False, markup=False)


@app.command()
def publish(
    run: RunFolder = DEFAULT_RUN,
    releases: Releases = DEFAULT_RELEASES,
    force: Annotated[bool, typer.Option("--force", help="Publish in spite of failing gates.")] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Do not put it in service; 'bespoke release' tries or promotes it.")
    ] = False,
) -> None:
    """Turn a run into the release in service, if its gates hold."""
    from training.publish import publish as publish_run
    from training.runs import open_run

    with activity() as say:
        published = publish_run(open_run(run), releases, force=force, hold=hold, say=lambda text: say(text, 0.0))
    for reason in published.overridden:
        output().print(f"[bold yellow]overridden:[/] {escape(reason)}", highlight=False)
    done = "written, not in service:" if hold else "published"
    output().print(f"{done} [bold]{published.name}[/] in {escape(str(releases))}", highlight=False)


def _cluster_trainer(source: Source, workers: int) -> Callable[..., Trained]:
    try:
        from training.cluster import cluster_trainer
    except ImportError as error:
        raise Unavailable(f"--cluster needs {error.name}: pip install 'bespoke[cluster]'") from None
    return cluster_trainer(source, workers)


def _stored(run: Path, cutoffs: tuple[int, ...]) -> Evaluation | None:
    """The evaluation that a run holds, if it has all the cut-offs."""
    from training.evaluate import Evaluation
    from training.runs import DONE, EVALUATION

    path = run / EVALUATION
    if not path.is_file() or not (run / DONE).is_file():
        return None
    found = Evaluation.from_json(path.read_bytes(), where=str(path))
    return found if set(cutoffs) <= set(found.cutoffs) else None


def _evaluate(run: Path, cutoffs: tuple[int, ...], releases: Path) -> Evaluation:
    from training.runs import evaluate_run, open_run

    with activity() as say:
        return evaluate_run(open_run(run), k=cutoffs, release=_release(releases), say=lambda text: say(text, 0.0))


def _report(run: Path, file: Path, releases: Path, cutoffs: tuple[int, ...]) -> Evaluation:
    from training.findings import find
    from training.report import write_report
    from training.runs import keep_evaluation, open_run

    with activity() as say:
        opened = open_run(run)
        found = find(opened, release=_release(releases), k=cutoffs, say=lambda text: say(text, 0.0))
        write_report(found, file)
        keep_evaluation(opened, found.evaluation)
    return found.evaluation


def _cold_start(run: Path) -> None:
    from training.cold_start import keep_cold_start, measure_cold_start
    from training.runs import open_run

    with activity() as say:
        opened = open_run(run)
        about = opened.about
        keep_cold_start(opened.folder, measure_cold_start(about.source, opened.config, seed=about.seed, say=say))


def _release(releases: Path) -> Bundle | None:
    """The release in service, if there is one."""
    from embeddings.bundle_reader import open_bundle
    from embeddings.releases import current_release

    name = current_release(releases)
    return open_bundle(releases / name) if name else None


def _show_run(run: TrainedRun) -> None:
    about, table = run.about, Table("", "recall@10", "ndcg@10", title=f"trained {run.folder}", title_justify="left")
    if about.validation:
        table.add_row("towers, validation", *(f"{about.validation[name]:.4f}" for name in ("recall@10", "ndcg@10")))
    for name in ("retrieval", "ranker") if about.report and about.report["held_out"] else ():
        figures = about.report[name] if about.report else {}
        table.add_row(f"{name}, held out", *(f"{figures[metric]:.4f}" for metric in ("recall@10", "ndcg@10")))
    output().print(table)
    output().print(
        f"best epoch {about.best_epoch} of {about.epochs}, {about.seconds:.0f} s; {about.stopped}", highlight=False
    )
    if about.warm_start:
        output().print(about.warm_start.words(), highlight=False, markup=False)
    if about.report and about.report["note"]:
        output().print(f"the ranking model keeps the retrieval order: {about.report['note']}", highlight=False)


@contextmanager
def activity() -> Iterator[Callable[[str, float], None]]:
    """One line that says what is going on; nothing where nobody watches a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading data", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)


def output() -> Console:
    """The console that results are printed on."""
    # A pipe has no width; a table cut off at 80 columns would be of no use in a log.
    return Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=200)
