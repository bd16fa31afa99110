"""Training runs: one folder each, from which a model can be evaluated and published without training again.

Its files are listed in `about.py`. The data stay where they are; a run knows them by path and fingerprint, and refuses
others.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from embeddings.arrays import Mask
from embeddings.bundle import Bundle, build_towers
from embeddings.durable import put
from embeddings.errors import DataError, InputError, NotFound
from embeddings.ranker import Ranker, RankerConfig
from embeddings.successors import Successors
from embeddings.two_tower import TwoTower
from training.about import (
    COLD_START,
    CONFIG,
    DONE,
    EVALUATION,
    FEATURES,
    ITEMS,
    LOG,
    QUARANTINE,
    RANKER,
    TENSORBOARD,
    TOWERS,
    About,
    Source,
    WarmStart,
    effort,
    effort_to_reach,
)
from training.checkpoint import FILE as CHECKPOINT
from training.config import Config, Run, parse_config
from training.contenders import item_matrix
from training.dataset import Dataset, Split, leave_last_out, leave_share_out, load, temporal
from training.device import pick_device, seeded
from training.evaluate import Evaluation, evaluate
from training.examples import ListMaker
from training.loop import Progress, Trained, train
from training.ranking import Fitted, Report, fit_ranker
from training.sources import read
from training.successors import count_successors
from training.tracking import MLFLOW, Tracker, tracking
from training.warm_start import Origin, Transplant, transplant

__all__ = [
    "DONE",
    "EVALUATION",
    "LOG",
    "Source",
    "TrainedRun",
    "evaluate_run",
    "keep_evaluation",
    "open_run",
    "train_run",
]

Say = Callable[[str, float], None]
"""Told what is being done, and how much of it is done (0 to 1)."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run, opened: data and split as they were trained on, and the models."""

    folder: Path
    about: About
    config: Config
    data: Dataset
    split: Split
    towers: TwoTower
    ranker: Ranker | None


def read_dataset(source: Source, config: Config, *, quarantine: Path | None = None) -> Dataset:
    """Read the events, items and users of a source; refused rows go to `quarantine`. Raises `DataError` as readers do."""
    tables = read(source.path, format=source.format, quarantine=quarantine)
    return build_dataset(tables.events, tables.items, tables.users, config=config)


def build_dataset(events: pa.Table, items: pa.Table | None, users: pa.Table | None, *, config: Config) -> Dataset:
    """Tables of the schemas as the data set that a configuration asks for."""
    features = config.features
    return load(
        events,
        items,
        users,
        event_types=config.event_types,
        min_count=features.min_count,
        text_buckets=features.text_buckets,
        context_buckets=features.context_buckets,
    )


def make_split(data: Dataset, config: Config) -> Split:
    """Hold events out, as the configuration says."""
    settings = config.split
    if settings.kind == "leave_last_out":
        return leave_last_out(data)
    if settings.kind == "leave_share_out":
        return leave_share_out(data, share=settings.validation_share, test_share=settings.test_share)
    return temporal(data, validation_share=settings.validation_share, test_share=settings.test_share)


def train_run(
    folder: Path,
    source: Source,
    config: Config,
    run: Run,
    *,
    origin: Origin | None = None,
    trainer: Callable[..., Trained] = train,
    say: Say | None = None,
) -> TrainedRun:
    """Train towers and ranking model into a run folder; what an earlier run left there is replaced.

    The towers go on from `origin`, if there is one; `trainer` is `training.loop.train`, or stands in for it.

    With `run.resume` the training goes on from the folder's checkpoint, if it is of the same configuration, data and
    seed. Raises `DataError` and `TrainingError`.
    """
    say = say or (lambda text, share: None)
    source = source.model_copy(update={"path": source.path.resolve()})
    pick_device(run.device)  # a missing GPU is said before the data are read
    (folder / QUARANTINE).unlink(missing_ok=True)
    data = read_dataset(source, config, quarantine=folder / QUARANTINE)
    folder.mkdir(parents=True, exist_ok=True)
    split = make_split(data, config)
    if not run.resume:  # what is resumed is the same training: its files stay true until the new ones replace them
        _clear(folder, CHECKPOINT, LOG, MLFLOW)
        shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
    moved = _moved(origin, data, config, run)
    with tracking(folder) as tracker:
        trained = trainer(
            data,
            split,
            config,
            run.model_copy(update={"checkpoints": folder}),
            start=moved.weights if moved else None,
            progress=_follow(folder, config, say, tracker),
        )
        tracker.outcome(config, trained.validation)
    with seeded(run, torch.device("cpu")):
        fitted = train_ranker(data, split, trained.towers, config, seed=run.seed, say=say)
    found = TrainedRun(
        folder=folder,
        about=_about(source, data, run, trained, fitted, origin, moved),
        config=config,
        data=data,
        split=split,
        towers=trained.towers,
        ranker=fitted.ranker if fitted else None,
    )
    _keep(found)
    return found


def _moved(origin: Origin | None, data: Dataset, config: Config, run: Run) -> Transplant | None:
    """The weights to begin with, if there is something to begin with."""
    if origin is None:
        return None
    with seeded(run, torch.device("cpu")):
        return transplant(origin, build_towers(config.towers, data.spec, items=len(data.items)), data)


def _about(
    source: Source,
    data: Dataset,
    run: Run,
    trained: Trained,
    fitted: Fitted | None,
    origin: Origin | None,
    moved: Transplant | None,
) -> About:
    return About(
        finished_at=datetime.now(UTC),
        source=source,
        fingerprint=data.fingerprint(),
        seed=run.seed,
        device=run.device,
        seconds=trained.seconds,
        epochs=len(trained.history),
        best_epoch=trained.best_epoch,
        stopped=trained.stopped,
        skipped=trained.skipped,
        validation=trained.validation,
        ranker=fitted.ranker.config if fitted else None,
        report=_plain(fitted.report) if fitted else None,
        cold=origin.cold if origin else effort(trained.history, trained.best_epoch),
        warm_start=_warm_start(origin, moved, trained) if origin and moved else None,
    )


def _keep(run: TrainedRun) -> None:
    """Write the files of a run in place of older ones, the one that says that it is finished last."""
    folder = run.folder
    _clear(folder)
    _write(folder / CONFIG, run.config.model_dump_json(indent=1))
    _write(folder / FEATURES, run.data.spec.model_dump_json(indent=1))
    _write(folder / ITEMS, json.dumps(run.data.items.all))
    _save(run.towers, folder / TOWERS)
    if run.ranker is not None:
        _save(run.ranker, folder / RANKER)
        _log(folder, {"ranker": run.about.report})
    _write(folder / DONE, run.about.model_dump_json(indent=1))


def open_run(folder: Path) -> TrainedRun:
    """Open a finished run and read its data again.

    Raises `NotFound` if there is none, `DataError` if a file of it is damaged or the data are no longer those it was
    trained on.
    """
    if not (folder / DONE).is_file():
        begun = (folder / CHECKPOINT).is_file()
        what = "is not finished; go on with --resume, or train it again" if begun else "holds no training run"
        raise NotFound(f"{folder} {what}", field="run")
    try:
        about = About.model_validate_json((folder / DONE).read_bytes())
        config = parse_config(json.loads((folder / CONFIG).read_bytes()), where=str(folder / CONFIG))
    except (ValidationError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise DataError(f"{folder} holds a file that is not of a run: {error}") from None
    data = read_dataset(about.source, config)
    if data.fingerprint() != about.fingerprint:
        raise DataError(f"the data in {about.source.path} are not those that {folder} was trained on; train again")
    towers = build_towers(config.towers, data.spec, items=len(data.items))
    _load(towers, folder / TOWERS)
    ranker = None
    if about.ranker:
        ranker = Ranker(about.ranker, dim=config.towers.dim, items=len(data.items), tokens=data.spec.token_count)
        _load(ranker, folder / RANKER)
    return TrainedRun(
        folder=folder,
        about=about,
        config=config,
        data=data,
        split=make_split(data, config),
        towers=towers,
        ranker=ranker,
    )


def evaluate_run(
    run: TrainedRun,
    *,
    k: Iterable[int] = (10,),
    release: Bundle | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate a run on its test targets, beside the release in service if there is one, and keep the table."""
    found = evaluate(run.data, run.split, run.towers, run.ranker, k=k, release=release, say=say)
    keep_evaluation(run, found)
    return found


def keep_evaluation(run: TrainedRun, found: Evaluation) -> None:
    """Keep an evaluation in the run's folder, and tell the trackers."""
    _write(run.folder / EVALUATION, json.dumps(found.to_json(), indent=1))
    with tracking(run.folder) as tracker:
        tracker.evaluation(found)


def _warm_start(origin: Origin, moved: Transplant, trained: Trained) -> WarmStart:
    at_start, cold = trained.start.get("ndcg@10"), origin.cold
    return WarmStart(
        origin=origin.name,
        kept=moved.kept,
        new=moved.new,
        retired=moved.retired,
        at_start=at_start,
        cold=cold,
        reached=effort_to_reach(trained.history, cold.ndcg, at_start=at_start) if cold else None,
    )


def train_ranker(
    data: Dataset, split: Split, towers: TwoTower, config: Config, *, seed: int, say: Say
) -> Fitted | None:
    """Train the ranking model that a configuration asks for; None if it asks for none, or nothing is held out."""
    if config.ranker is None or not len(split.validation):
        return None
    say("ranking lists", 0.0)
    maker = ListMaker(
        data, towers, item_matrix(data, towers), config.ranker, _successors(data, split.train, config.ranker)
    )
    return fit_ranker(
        maker,
        split.validation,
        learning=config.learning,
        seed=seed,
        progress=lambda done, of: say(f"ranker, epoch {done}", done / of),
    )


def recount(data: Dataset, known: Mask, ranker: Ranker) -> None:
    """Count anew what followed what, in all events [E] that are marked as known: more than those it was fitted beside."""
    ranker.set_successors(_successors(data, known, ranker.config))


def _successors(data: Dataset, known: Mask, config: RankerConfig) -> Successors:
    return count_successors(data, known, width=config.successors, reach=config.reach)


def _clear(folder: Path, *more: str) -> None:
    for name in (DONE, EVALUATION, COLD_START, TOWERS, RANKER, CONFIG, FEATURES, ITEMS, *more):
        (folder / name).unlink(missing_ok=True)


def _follow(folder: Path, config: Config, say: Say, tracker: Tracker) -> Callable[[Progress], None]:
    found = ""

    def follow(at: Progress) -> None:
        nonlocal found
        tracker.follow(at)
        if at.finished is not None:
            _log(folder, dataclasses.asdict(at.finished))
            if "ndcg@10" in at.finished.metrics:
                found = f", validation NDCG@10 {at.finished.metrics['ndcg@10']:.4f}"
        say(f"towers, epoch {at.epoch} of at most {at.epochs}, loss {at.loss:.3f}{found}", at.share)

    return follow


def _log(folder: Path, entry: dict[str, Any]) -> None:
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _plain(report: Report) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(report)).replace("NaN", "null"))
    return plain


def _save(module: torch.nn.Module, path: Path) -> None:
    weights = {name: weight.detach().cpu().contiguous() for name, weight in module.state_dict().items()}
    put(path, lambda unfinished: save_file(weights, unfinished))


def _load(module: torch.nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise DataError(f"{path} does not hold the weights of this run: {error}") from None
    module.eval().requires_grad_(False)


def _write(path: Path, text: str) -> None:
    put(path, lambda unfinished: unfinished.write_text(text + "\n", encoding="utf-8"))
