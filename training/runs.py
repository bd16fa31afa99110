"""Training runs: one folder each, from which a model can be evaluated and published without training again.

    RUN/
      config.json              the configuration, whole
      checkpoint.safetensors   where the training of the towers stands, for --resume
      log.jsonl                one line an epoch
      quarantine.jsonl         rows of the data that were refused, if there were any
      towers.safetensors       the towers of the best epoch
      ranker.safetensors       the ranking model, if the configuration asks for one
      evaluation.json          the table, once it was computed
      run.json                 data, seed, what came of it; written last: a folder without it is unfinished

The data stay where they are; a run knows them by path and fingerprint, and refuses others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from embeddings.bundle import build_towers
from embeddings.durable import put
from embeddings.errors import DataError, InputError, NotFound
from embeddings.ranker import Ranker, RankerConfig
from embeddings.two_tower import TwoTower
from training.checkpoint import FILE as CHECKPOINT
from training.config import Config, Run, parse_config
from training.contenders import item_matrix
from training.dataset import Dataset, Split, Targets, leave_last_out, load, temporal
from training.device import pick_device, seeded
from training.evaluate import Evaluation, evaluate
from training.examples import ListMaker
from training.loop import Progress, train
from training.ranking import Fitted, Report, fit_ranker
from training.sources import read

CONFIG, LOG, DONE = "config.json", "log.jsonl", "run.json"
TOWERS, RANKER, EVALUATION = "towers.safetensors", "ranker.safetensors", "evaluation.json"
QUARANTINE = "quarantine.jsonl"

Say = Callable[[str, float], None]
"""Told what is being done, and how much of it is done (0 to 1)."""


class Source(BaseModel):
    """Where the data of a run lie, and how they are to be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    format: str = "auto"


class About(BaseModel):
    """What a finished run says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finished_at: datetime
    source: Source
    fingerprint: str
    seed: int
    device: str
    seconds: float
    epochs: int
    best_epoch: int
    stopped: str
    skipped: int
    validation: dict[str, float]
    ranker: RankerConfig | None
    report: dict[str, Any] | None


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
    return temporal(data, validation_share=settings.validation_share, test_share=settings.test_share)


def train_run(folder: Path, source: Source, config: Config, run: Run, *, say: Say | None = None) -> TrainedRun:
    """Train towers and ranking model into a run folder; what an earlier run left there is replaced.

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
        _clear(folder, CHECKPOINT, LOG)
    options = run.model_copy(update={"checkpoints": folder})
    trained = train(data, split, config, options, progress=_follow(folder, config, say))
    with seeded(run, torch.device("cpu")):
        fitted = _fit_ranker(data, split.validation, trained.towers, config, seed=run.seed, say=say)
    _clear(folder)
    _write(folder / CONFIG, config.model_dump_json(indent=1))
    _save(trained.towers, folder / TOWERS)
    if fitted is not None:
        _save(fitted.ranker, folder / RANKER)
        _log(folder, {"ranker": dataclasses.asdict(fitted.report)})
    best = trained.history[trained.best_epoch - 1].metrics if trained.history and trained.best_epoch else {}
    about = About(
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
        validation=best,
        ranker=fitted.ranker.config if fitted else None,
        report=_plain(fitted.report) if fitted else None,
    )
    _write(folder / DONE, about.model_dump_json(indent=1))
    return TrainedRun(
        folder=folder,
        about=about,
        config=config,
        data=data,
        split=split,
        towers=trained.towers,
        ranker=fitted.ranker if fitted else None,
    )


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
    ranker = Ranker(about.ranker, dim=config.towers.dim) if about.ranker else None
    if ranker is not None:
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


def evaluate_run(run: TrainedRun, *, k: Iterable[int] = (10,), say: Callable[[str], None] | None = None) -> Evaluation:
    """Evaluate a run on its test targets and keep the table in its folder."""
    found = evaluate(run.data, run.split, run.towers, run.ranker, k=k, say=say)
    _write(run.folder / EVALUATION, json.dumps(found.to_json(), indent=1))
    return found


def _fit_ranker(
    data: Dataset, targets: Targets, towers: TwoTower, config: Config, *, seed: int, say: Say
) -> Fitted | None:
    if config.ranker is None or not len(targets):
        return None
    say("ranking lists", 0.0)
    maker = ListMaker(data, towers, item_matrix(data, towers), config.ranker)
    return fit_ranker(maker, targets, seed=seed, progress=lambda done, of: say(f"ranker, epoch {done}", done / of))


def _clear(folder: Path, *more: str) -> None:
    for name in (DONE, EVALUATION, TOWERS, RANKER, CONFIG, *more):
        (folder / name).unlink(missing_ok=True)


def _follow(folder: Path, config: Config, say: Say) -> Callable[[Progress], None]:
    found = ""

    def follow(at: Progress) -> None:
        nonlocal found
        if at.finished is not None:
            _log(folder, dataclasses.asdict(at.finished))
            if "ndcg@10" in at.finished.metrics:
                found = f", validation NDCG@10 {at.finished.metrics['ndcg@10']:.4f}"
        done = (at.epoch - 1 + at.step / max(1, at.steps)) / at.epochs
        say(f"towers, epoch {at.epoch} of at most {at.epochs}, loss {at.loss:.3f}{found}", done)

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
