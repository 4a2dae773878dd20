"""What a worker reads from its environment."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from store.settings import StoreSettings, read, split_list

_DEVICE = re.compile(r"cpu|cuda:\d+")


class WorkerSettings(StoreSettings):
    """Which jobs a worker takes, on which devices, and how it looks after them."""

    queues: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Queues to serve, comma-separated; empty: `gpu` if there is one, and `cpu`."
    )
    devices: str = Field("auto", description='"auto", "cpu", or GPUs such as "cuda:0,cuda:1".')
    slots: int = Field(1, ge=1, le=256, description="Jobs at a time on the CPU; a GPU runs one.")
    threads: int = Field(0, ge=0, description="Threads of a trainer; 0 shares the cores evenly.")
    memory_bytes: int = Field(0, ge=0, description="Memory of a trainer on the CPU; 0: no limit.")
    training_cache_bytes: int = Field(
        20 << 30, ge=0, description="Disk for encoded data sets and weights."
    )
    lease_seconds: float | None = Field(
        None, gt=0, description="How soon a silent worker loses its job; 30, or 15 on SQLite."
    )
    heartbeat_seconds: float | None = Field(
        None, gt=0, description="How often a lease is renewed; 5, or 2 on SQLite."
    )
    poll_seconds: float | None = Field(
        None, gt=0, description="How often to look for jobs; 5, or 0.2 without a broker."
    )
    drain_seconds: float = Field(
        20.0, ge=0, description="Time for a last checkpoint when the worker is told to stop."
    )
    checkpoint_seconds: float = Field(
        30.0, ge=0, description="Training time between two checkpoints: the most a crash costs."
    )
    checkpoint_share: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Most of the time that checkpoints may cost; where they take long, they come less often.",
    )
    stall_seconds: float = Field(
        1800.0, gt=0, description="How long a trainer may be silent before it is ended as stalled."
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    @field_validator("queues", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("devices")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == "auto" or all(_DEVICE.fullmatch(name) for name in value.split(",")):
            return value
        raise ValueError('must be "auto", "cpu", or GPUs such as "cuda:0,cuda:1"')

    @model_validator(mode="after")
    def _beats_often_enough(self) -> Self:
        if self.heartbeat * 2 > self.lease:
            raise ValueError("heartbeat_seconds must be at most half of lease_seconds")
        return self

    @property
    def lease(self) -> float:
        """Seconds a lease lasts unless it is renewed."""
        return self.lease_seconds or (15.0 if self._on_one_machine else 30.0)

    @property
    def heartbeat(self) -> float:
        """Seconds between two renewals."""
        return self.heartbeat_seconds or (2.0 if self._on_one_machine else 5.0)

    @property
    def poll(self) -> float:
        """Seconds between two looks for a job."""
        return self.poll_seconds or (5.0 if self.has_broker else 0.2)

    @property
    def cache_dir(self) -> Path:
        """Where trainers keep what they can make or fetch again."""
        return self.data_dir / "cache" / "training"

    @property
    def _on_one_machine(self) -> bool:
        return self.database.startswith("sqlite")


def read_settings() -> WorkerSettings:
    """The settings of this process. Raises SystemExit(2), the wrong ones named on stderr."""
    return read(WorkerSettings, "worker")
