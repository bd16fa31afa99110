"""The configuration of a training: what is learned (`Config`), and how this machine goes about it (`Run`).

`Config` belongs to the model: two trainings of one `Config` on the same data are the same experiment, and the bundle
keeps it. `Run` is device, seed and time limits. Every default stands here or in `TowerConfig` and `RankerConfig`, once;
recipes only say where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embeddings.errors import ConfigError, unknown_name
from embeddings.features import DEFAULT_EVENT_TYPES, EventKind
from embeddings.ranker import RankerConfig
from embeddings.schema import Name
from embeddings.two_tower import TowerConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FeatureConfig(_Section):
    """What the featurizer learns from the catalogue, and how wide its hashed tables are; 0 buckets switch a part off."""

    min_count: int = Field(default=2, ge=1, description="attributes on fewer items share hashed buckets")
    text_buckets: int = Field(default=0, ge=0, le=1_000_000)
    context_buckets: int = Field(default=0, ge=0, le=1_000_000)


class SplitConfig(_Section):
    """Which events are held out; the shares are those of all events (temporal), or of each person's (leave_share_out)."""

    kind: Literal["leave_last_out", "leave_share_out", "temporal"] = "leave_last_out"
    validation_share: float = Field(default=0.1, gt=0.0, lt=0.5)
    test_share: float = Field(default=0.1, gt=0.0, lt=0.5)


class LossConfig(_Section):
    """Softmax cross-entropy: over the whole catalogue up to `full_up_to` items, over samples above."""

    full_up_to: int = Field(default=100_000, ge=0)
    negatives: int = Field(default=1024, ge=1, description="uniform samples a step, shared by its positions")
    in_batch: int = Field(default=0, ge=0, description="targets of the batch that join the samples, logQ-corrected")
    temperature: float = Field(default=1.0, gt=0.0, description="logit = dot product / temperature")
    hide_seen: bool = Field(default=True, description="full softmax: items of the history are no negatives")
    chunk_mb: int = Field(default=8, ge=1, description="block of logits held at once; on a CPU, what its cache holds")


class Learning(_Section):
    """How the ranking model is trained; what it is stands in `RankerConfig`."""

    learning_rate: float = Field(default=5e-4, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
    batch: int = Field(default=32, ge=1, description="lists a step")
    epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=6, ge=1, description="epochs without a better held-out NDCG@10 before it stops")
    pointwise: float = Field(default=0.3, ge=0.0, description="weight of the cross-entropy of single candidates")
    max_lists: int = Field(default=20_000, ge=1)


class SpectrumConfig(_Section):
    """Towers in closed form to begin with (`training.spectrum`); validation chooses rank and exponent."""

    rank: int | None = Field(
        default=None,
        ge=1,
        description="vectors that count; left out, validation chooses: towers.dim, half of it, and so on",
    )
    exponents: tuple[float, ...] = Field(
        default=(0.3, 0.4, 0.5), min_length=1, description="an item's vector is as long as its count to this power"
    )
    sampled: int = Field(default=4_000, ge=1, description="validation targets that choose")


class OptimisationConfig(_Section):
    """Adam with warm-up and clipping; the best epoch on validation NDCG@10 is kept."""

    learning_rate: float = Field(default=1e-3, gt=0.0)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=0.0, ge=0.0, description="decoupled (AdamW); norms and biases are spared")
    warmup_steps: int = Field(default=50, ge=0)
    clip: float = Field(default=1.0, gt=0.0, description="largest gradient norm")
    batch: int = Field(default=128, ge=1, description="windows of histories a step")
    epochs: int = Field(default=50, ge=0, description="0 keeps the towers of a spectrum as they are")
    patience: int = Field(default=5, ge=1, description="epochs without a better validation NDCG@10 before it stops")


class Config(_Section):
    """Every hyper-parameter of one experiment."""

    towers: TowerConfig = TowerConfig()
    ranker: RankerConfig | None = RankerConfig()
    learning: Learning = Learning()
    features: FeatureConfig = FeatureConfig()
    split: SplitConfig = SplitConfig()
    loss: LossConfig = LossConfig()
    spectrum: SpectrumConfig | None = None
    optimisation: OptimisationConfig = OptimisationConfig()
    event_types: dict[Name, EventKind] = Field(default_factory=lambda: dict(DEFAULT_EVENT_TYPES), min_length=1)

    @model_validator(mode="after")
    def _parts_agree(self) -> Config:
        if not any(kind.positive for kind in self.event_types.values()):
            raise ValueError("event_types: at least one type must be positive, or there is nothing to predict")
        if self.spectrum and (self.towers.encoder, self.towers.metric) != ("pooled", "dot"):
            raise ValueError("spectrum: needs towers.encoder = 'pooled' and towers.metric = 'dot'")
        if self.spectrum and self.towers.members > 1:
            raise ValueError("spectrum: is one, so towers.members must be 1")
        if not self.optimisation.epochs and not self.spectrum:
            raise ValueError("optimisation.epochs: 0 trains nothing, unless a spectrum begins")
        unknown = sorted(set(self.ranker.objectives) - set(self.event_types)) if self.ranker else []
        if unknown:
            raise ValueError(f"ranker.objectives: '{unknown[0]}' is none of event_types: {', '.join(self.event_types)}")
        return self


class Run(_Section):
    """Options of one run: nothing here changes what the experiment is."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; the machine's own choice if left out")
    checkpoints: Path | None = Field(default=None, description="folder of the checkpoint; none is written without it")
    checkpoint_seconds: float = Field(default=60.0, ge=0.0, description="0 writes one after every step")
    resume: bool = False
    max_minutes: float | None = Field(default=None, gt=0.0, description="of all runs that share a checkpoint")
    compile: bool = Field(default=True, description="torch.compile where there is a GPU")

    @model_validator(mode="after")
    def _resume_needs_a_folder(self) -> Run:
        if self.resume and self.checkpoints is None:
            raise ValueError("resume needs checkpoints, the folder to resume from")
        return self


def parse_config(raw: Mapping[str, Any], *, where: str) -> Config:
    """Validate a configuration read from `where`; the `ConfigError` names the key, and the known ones if it is unknown."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise _config_error(error, Config, where) from None


def parse_run(**options: Any) -> Run:
    """Validate run options; raises `ConfigError`."""
    try:
        return Run.model_validate(options)
    except ValidationError as error:
        raise _config_error(error, Run, "run options") from None


def _config_error(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [str(part) for part in detail["loc"]]
    field = ".".join(path)
    if detail["type"] == "extra_forbidden":
        message = unknown_name("key", field, _siblings(model, path), field=field).message
    else:
        message = f"{field}: {detail['msg']}" if field else detail["msg"]
    return ConfigError(f"{where}: {message.replace('Value error, ', '')}", field=field or None)


def _siblings(model: type[BaseModel], path: list[str]) -> list[str]:
    """Known keys beside a wrong one, as they would be written: `towers.dim`, `towers.layers`, ..."""
    prefix: list[str] = []
    for part in path[:-1]:
        prefix.append(part)
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        nested = [kind for kind in (annotation, *getattr(annotation, "__args__", ())) if _is_model(kind)]
        if nested:
            model = nested[0]
    return [".".join([*prefix, name]) for name in model.model_fields]


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
