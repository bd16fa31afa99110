"""Result files: what a benchmark found, with the hardware, the versions and the month it was found on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(name: str, found: Mapping[str, Any], *, device: str = "cpu") -> Path:
    """Write `found` to a file named by theme, hardware and month; returns its path. `device` is that of a training run."""
    now, cores, gpu = datetime.now(UTC), os.cpu_count() or 1, _gpu(device)
    path = RESULTS / f"{name}-{'gpu' if gpu else 'cpu'}{cores}-{now:%Y-%m}.json"
    body = {
        "benchmark": name,
        "month": f"{now:%Y-%m}",
        "hardware": {"machine": platform.machine(), "cores": cores, "device": gpu or "cpu"},
        "python": platform.python_version(),
        **found,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return path


def _gpu(device: str) -> str | None:
    if device == "cpu":
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
