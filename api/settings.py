"""What the web side reads from its environment."""

from importlib.util import find_spec
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from store.settings import StoreSettings, split_list

MIB = 2**20
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ApiSettings(StoreSettings):
    """Where the API listens, what it lets in, and how much of the machine it may use."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    processes: int = Field(
        1, ge=1, le=256, description="Processes that share the port; each has models of its own."
    )
    role: Literal["all", "predictor"] = Field(
        "all", description="What is offered: all, or predictions alone."
    )
    access_log: bool = Field(False, description="Log a line for every request.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    metrics_public: bool = Field(False, description="Serve /metrics without a key.")
    admin_key: SecretStr | None = Field(
        None, min_length=16, description="The first admin key; one is made and shown if left out."
    )
    key_cache_seconds: float = Field(
        3.0, ge=0, description="How long a revoked key may still be accepted."
    )

    webhook_private: bool = Field(
        False, description="Send webhooks over http:// and to private addresses, too."
    )

    hub_checkpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",),
        description="Checkpoints of the Hugging Face Hub that jobs may begin with, as comma-separated patterns "
        "such as `google/*`; empty: none.",
    )

    body_bytes: int = Field(32 * MIB, ge=1, description="Largest request body, uploads excepted.")
    upload_bytes: int = Field(2048 * MIB, ge=1, description="Largest upload.")
    check_seconds: int = Field(
        600, ge=1, description="Processor and wall-clock time one check of a data set may take."
    )
    check_bytes: int = Field(
        8192 * MIB, ge=256 * MIB, description="Memory one check of a data set may take."
    )
    checks: int = Field(2, ge=1, description="Checks of data sets that run at the same time.")
    cache_bytes: int = Field(
        2048 * MIB, ge=1, description="Disk for data sets whose examples were looked at."
    )

    resident_bytes: int = Field(
        2048 * MIB, ge=1, description="Memory for models that are ready to predict."
    )
    resident_seconds: float = Field(
        900, ge=0, description="Idle time after which a model leaves memory; 0: it stays."
    )
    predict_queue: int = Field(
        1024, ge=1, description="Inputs that may wait per model; requests beyond them get 503."
    )
    predict_threads: int = Field(
        0,
        ge=0,
        description="Threads of one forward pass on the CPU; 0: as many as there are cores.",
    )
    predict_device: str = Field("cpu", description="Device that predicts, such as cpu or cuda:0.")
    predict_precision: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="What networks may be computed in, where that is faster and the outputs stay near "
        "those in float32: float32, bfloat16 too, or also int8 (with `onnx`).",
    )
    predict_runtime: Literal["torch", "onnx"] = Field(
        "torch",
        description="What computes networks on the CPU: torch, or also ONNX Runtime where it is faster, "
        "which `pip install modelyard[onnx]` brings.",
    )

    @field_validator("hub_checkpoints", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @model_validator(mode="after")
    def _check_port(self) -> Self:
        if self.processes > 1 and self.port == 0:
            raise ValueError("port: several processes need a number that they can share")
        return self

    @model_validator(mode="after")
    def _check_packages(self) -> Self:
        lacking = [name for name in ONNX_PACKAGES if find_spec(name) is None]
        if self.predict_runtime == "onnx" and lacking:
            raise ValueError(f"predict_runtime: `onnx` needs {', '.join(lacking)}")
        return self
