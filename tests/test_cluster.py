"""Training on workers: a group that computes what one computes, and Ray Train that survives the death of a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import distributed, multiprocessing

from embeddings.errors import ConfigError
from embeddings.features import EventKind
from tests import habits
from tests.conftest import require
from tests.histories import cycle
from tests.test_keys import eventually
from tests.test_loop import recipe
from training.checkpoint import FILE as CHECKPOINT
from training.config import Run
from training.dataset import leave_last_out
from training.group import Group, Workers
from training.loop import train
from training.runs import Source, train_run

VIEW = {"view": EventKind()}
PLAIN = {"dropout": 0.0, "id_dropout": 0.0}


def _worker(rank: int, size: int, folder: str, body: Callable[[Group], Any]) -> None:
    store = f"file://{folder}/store"
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
    torch.set_num_threads(1)
    torch.save(body(Workers(torch.device("cpu"))), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def together(folder: Path, body: Callable[[Group], Any], size: int = 2) -> list[Any]:
    """What a function of the group gives in each of several processes."""
    folder.mkdir(parents=True)
    multiprocessing.spawn(_worker, args=(size, str(folder), body), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def exchange(group: Group) -> dict[str, Any]:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 1, bias=False) for name in ("used", "sometimes", "never")})
    model["used"].weight.grad = torch.full((1, 2), float(group.rank + 1))
    if group.rank:
        model["sometimes"].weight.grad = torch.ones(1, 2)
    table = model["table"] = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([0, 1 + group.rank])).sum().backward()
    count = 3 if group.rank else 1
    loss, counted = group.average(model, loss=float(10 * group.rank), count=count)
    return {
        "share": [group.share(np.arange(3 * n).reshape(n, 3))[:, 0].tolist() for n in (5, 1)],
        "gather": group.gather(torch.arange(group.rank + 1) + 10 * group.rank).tolist(),
        "gather vectors": group.gather(torch.full((group.rank + 1, 2), float(group.rank))).tolist(),
        "grads": {
            name: None if layer.weight.grad is None else layer.weight.grad.to_dense().tolist()
            for name, layer in model.items()
        },
        "sparse": table.weight.grad.is_sparse,
        "loss": (loss, counted),
        "any": (group.any(group.rank == 1), group.any(False)),
        "agree": group.agree({"ndcg@10": float(group.rank)}),
    }


def trained(group: Group) -> dict[str, Any]:
    data = cycle(people=60, event_types=VIEW)
    config = recipe(towers=PLAIN)
    found = train(data, leave_last_out(data), config, Run(device="cpu", threads=1), group=group)
    return {"weights": found.towers.state_dict(), "history": [(one.loss, one.metrics) for one in found.history]}


def test_workers_exchange_what_they_should(tmp_path: Path) -> None:
    first, second = together(tmp_path / "group", exchange)
    assert first["share"] == [[0, 6, 12], [0]]
    assert second["share"] == [[3, 9], [0]]  # a single window is read by both
    for one in (first, second):
        assert one["gather"] == [0, 10, 11]
        assert one["gather vectors"] == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
        rows = [[1.0, 1.0], [0.25, 0.25], [0.75, 0.75], [0.0, 0.0]]
        assert one["grads"] == {"used": [[1.75, 1.75]], "sometimes": [[0.75, 0.75]], "never": None, "table": rows}
        assert one["sparse"]
        assert one["loss"] == (7.5, 4)
        assert one["any"] == (True, False)
        assert one["agree"] == {"ndcg@10": 0.0}


def test_a_flag_is_exchanged_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[str] = []
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda flag, op: exchanged.append(flag.device.type))
    with pytest.raises(RuntimeError, match="meta"):  # it has no value to be read
        Workers(torch.device("meta")).any(True)
    assert exchanged == ["meta"]


def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    """Without dropout nothing is drawn: the two differ from the one by the rounding of sums."""
    alone = trained(Group())
    first, second = together(tmp_path / "group", trained)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        torch.testing.assert_close(weight, alone["weights"][name], atol=2e-3, rtol=0)
    for (loss, metrics), (expected, others) in zip(first["history"], alone["history"], strict=True):
        assert loss == pytest.approx(expected, rel=1e-3)
        assert metrics["ndcg@10"] == pytest.approx(others["ndcg@10"], abs=0.03)


def test_no_workers_are_a_sentence() -> None:
    from training.cluster import cluster_trainer

    with pytest.raises(ConfigError, match="workers is 0, must be at least 1"):
        cluster_trainer(Source(path=Path()), 0)


def workers_of_ours() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_killed_worker_is_survived_and_two_are_as_good_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.cluster import cluster_trainer

    require(psutil, "psutil")
    monkeypatch.setenv(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"
    )  # so often Ray looks whether somebody died or is done
    source = Source(path=habits.write(tmp_path / "data"))
    towers = habits.CONFIG.towers.model_copy(update=PLAIN)  # nothing is drawn: what differs is rounding
    config = habits.CONFIG.model_copy(update={"ranker": None, "towers": towers})
    options = Run(device="cpu", threads=1, checkpoint_seconds=0.0)
    alone = train_run(tmp_path / "alone", source, config, options)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 200
        while not (tmp_path / "both" / CHECKPOINT).is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in workers_of_ours()[-1:]:
            process.kill()
            killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    both = train_run(tmp_path / "both", source, config, options, trainer=cluster_trainer(source, 2))
    killer.join()
    assert killed
    assert both.about.epochs == alone.about.epochs
    assert both.about.validation["ndcg@10"] == pytest.approx(alone.about.validation["ndcg@10"], abs=0.05)
    assert both.about.validation["ndcg@10"] > 0.3
    assert (tmp_path / "both" / "log.jsonl").read_text().count('"epoch"') == both.about.epochs
    assert eventually(lambda: not workers_of_ours(), within_s=20)
