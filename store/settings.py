"""What every process reads from its environment; `api` and `worker` add their own fields."""

from pathlib import Path

from pydantic import Field
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
