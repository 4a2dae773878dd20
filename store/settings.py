"""What every process reads from its environment; `api` and `worker` add their own fields."""

import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class StoreSettings(BaseSettings):
    """Where the database, the broker and this machine's files are."""

    model_config = SettingsConfigDict(env_prefix="MODELYARD_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path(".modelyard"), description="This machine's files: database, uploads, caches."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL; empty means SQLite in the data directory."
    )
    broker_url: str = Field(
        "memory://", description="Celery broker; `memory://` means no broker: workers poll."
    )

    @property
    def database(self) -> str:
        """The database's URL, the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'modelyard.sqlite'}"

    @property
    def has_broker(self) -> bool:
        """Whether wake-ups can be sent to workers in other processes."""
        return not self.broker_url.startswith("memory:")

    @property
    def doorbell(self) -> Path:
        """Where an API without a broker rings for the worker of this machine."""
        return self.data_dir / "doorbell"


def split_list(value: object) -> object:
    """The names in a comma-separated text."""
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


Settings = TypeVar("Settings", bound=StoreSettings)


def read(kind: type[Settings], part: str, **given: Any) -> Settings:
    """The settings of this process, a `part` of the service, those `given` before the environment's.

    Raises SystemExit(2), the wrong ones named on stderr.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = "".join(f"MODELYARD_{place}: ".upper() for place in fault["loc"][:1])
            sys.stderr.write(f"modelyard {part}: {name}{fault['msg']}\n")
        raise SystemExit(2) from None
