"""A world that order decides: some items have a sequel, and only who touched an item *last* wants its sequel next.

Everybody has touched many items whose sequels they have not seen, so what co-occurs says little, and what is popular says
nothing: a model that reads the order of a history must win, and by far.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq

from embeddings.schema import Event, Item, to_table
from training.config import Config

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
FIRST, PEOPLE = 60, 120
CONFIG = Config.model_validate(
    {
        "towers": {"dim": 16, "layers": 1, "max_history": 8, "dropout": 0.1, "id_dropout": 0.0},
        "ranker": {"objectives": ["view", "purchase"], "hidden": [8], "candidates": 20, "history": 8},
        "features": {"text_buckets": 32, "context_buckets": 16},
        "optimisation": {"epochs": 6, "batch": 16, "learning_rate": 0.01, "warmup_steps": 5, "patience": 6},
    }
)


def history(person: int) -> list[str]:
    """Items of one person: twelve alone, four with their sequel, and in the end one more with its sequel, and one more."""
    rng = random.Random(person)
    firsts = rng.sample(range(FIRST), 18)
    steps = [[f"a{n:02}"] for n in firsts[:12]] + [[f"a{n:02}", f"b{n:02}"] for n in firsts[12:16]]
    rng.shuffle(steps)
    last = firsts[16]
    return [*(item for step in steps for item in step), f"a{last:02}", f"b{last:02}", f"a{firsts[17]:02}"]


def write(folder: Path) -> Path:
    """Write the world as Parquet in the layout that the readers know."""
    events = [
        Event(
            user_id=f"u{person:03}", item_id=item, event_type="view", timestamp=START + timedelta(days=place, hours=1)
        )
        for person in range(PEOPLE)
        for place, item in enumerate(history(person))
    ]
    items = [
        Item(item_id=f"{kind}{n:02}", title=f"{kind} {n}", categories=[kind], price=float(n + 1), created_at=START)
        for kind in "ab"
        for n in range(FIRST)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(events, Event), folder / "events.parquet")
    pq.write_table(to_table(items, Item), folder / "items.parquet")
    return folder
