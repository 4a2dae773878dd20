"""What travels to the route that advises on bases."""

from typing import Any

from pydantic import ConfigDict, Field

from api.model_schemas import RunOptions

MOST = 100


class AdviceCreate(RunOptions):
    """Which bases to compare for a data set, and how closely to look."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})

    models: list[str] | None = Field(
        None,
        max_length=MOST,
        description="Models to compare: `name`, `name@3`, `name@alias`, `job_...`, `ckpt_...`; if left out, the newest "
        f"version of each of the project's {MOST} newest models.",
    )
    architectures: list[dict[str, Any]] = Field(
        [],
        max_length=MOST,
        description="Published checkpoints to compare as well, as architectures.",
        examples=[[{"name": "pretrained", "checkpoint": "facebook/dinov2-small"}]],
    )
    examples: int = Field(
        500,
        ge=20,
        le=5_000,
        description="Examples of the train split to look at, labels as often among them as in all of it.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="What draws them.")
