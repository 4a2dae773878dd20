"""What travels between clients and the routes of the Open Inference Protocol, version 2."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from models.parts.options import Plain


class InputParameters(Plain):
    """How an input is sent."""

    binary_data_size: NonNegativeInt | None = Field(
        None, description="Bytes behind the JSON that are its data; left out when `data` is."
    )


class InputTensor(BaseModel):
    """A value for each example."""

    name: str = Field(description="One of the model's inputs.")
    shape: list[NonNegativeInt] = Field(description="`[examples]` or `[examples, 1]`.")
    datatype: str = Field(description="What its elements are, such as FP64, BOOL or BYTES.")
    parameters: InputParameters = Field(InputParameters(), description="How it is sent.")
    data: list[Any] | None = Field(None, description="Its elements, flat or nested as the shape.")


class OutputParameters(Plain):
    """How an output is wanted."""

    binary_data: bool | None = Field(None, description="Whether in binary, behind the JSON.")


class WantedOutput(BaseModel):
    """An output to be given."""

    name: str = Field(description="One of the model's outputs.")
    parameters: OutputParameters = Field(OutputParameters(), description="How it is wanted.")


class InferParameters(Plain):
    """How all of the request is answered."""

    binary_data_output: bool = Field(
        False, description="Whether outputs are given in binary that do not say so themselves."
    )
    priority: int | None = Field(None, description="Of no effect: requests are taken in order.")
    timeout: int | None = Field(None, description="Of no effect.")


class InferIn(BaseModel):
    """Inputs to predict for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {"name": "age", "shape": [2], "datatype": "FP64", "data": [39, 50]},
                        {"name": "job", "shape": [2], "datatype": "BYTES", "data": ["nurse", ""]},
                    ],
                    "outputs": [{"name": "label"}],
                }
            ]
        }
    )

    id: str | None = Field(None, max_length=1_000, description="Comes back with the answer.")
    parameters: InferParameters = Field(InferParameters(), description="How it is answered.")
    inputs: list[InputTensor] = Field(min_length=1, description="As many examples in each.")
    outputs: list[WantedOutput] = Field([], description="What to give; the usual if left out.")


class OutputTensor(BaseModel):
    """A value, or one for each label, for each example."""

    name: str = Field(description="One of the model's outputs.")
    shape: list[int] = Field(description="`[examples]` or `[examples, labels]`.")
    datatype: str = Field(description="What its elements are.")
    parameters: dict[str, Any] | None = Field(
        None, description="`binary_data_size`, when its data are that many bytes behind the JSON."
    )
    data: list[Any] | None = Field(None, description="Its elements, flat.")


class InferOut(BaseModel):
    """Predictions, in the order of the examples."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_name": "census",
                    "model_version": "1",
                    "outputs": [
                        {
                            "name": "label",
                            "shape": [2],
                            "datatype": "BYTES",
                            "data": ["<=50K", ">50K"],
                        }
                    ],
                }
            ]
        }
    )

    model_name: str = Field(description="What predicted.")
    model_version: str | None = Field(None, description="The version of a named model.")
    id: str | None = Field(None, description="The request's.")
    outputs: list[OutputTensor] = Field(description="In the order in which they were asked for.")


class ServerOut(BaseModel):
    """The server and what it offers beyond the protocol's core."""

    name: str = Field(description="The server's name.")
    version: str = Field(description="The server's version.")
    extensions: list[str] = Field(description="The protocol's extensions that are served.")


class LiveOut(BaseModel):
    """Whether the process is alive."""

    live: bool = Field(description="Always true; who gets no answer knows.")


class ReadyOut(BaseModel):
    """Whether there is something that predicts."""

    ready: bool = Field(description="Always true; an error says that it is not, and why.")


class ModelReadyOut(ReadyOut):
    """Whether a model can be asked for predictions."""

    name: str = Field(description="The model.")


class TensorOut(BaseModel):
    """A tensor that a model reads or gives."""

    name: str = Field(description="Its name.", examples=["scores"])
    datatype: str = Field(description="What its elements are.", examples=["FP64"])
    shape: list[int] = Field(description="-1 is the number of examples.", examples=[[-1, 2]])
    parameters: dict[str, Any] = Field(
        description="`labels`: the names of the numbers that it has for each example."
    )


class ModelMetadataOut(BaseModel):
    """A model's inputs and outputs."""

    name: str = Field(description="The model.")
    versions: list[str] = Field(description="Versions of a named model, newest first.")
    platform: str = Field(description="What it runs on.")
    inputs: list[TensorOut] = Field(description="What it reads.")
    outputs: list[TensorOut] = Field(
        description="What it gives; `prediction` is each prediction as JSON."
    )


class IndexEntry(BaseModel):
    """A model that can be asked."""

    name: str = Field(description="Its name.")
    version: str = Field(description="Its newest version.")
    state: str = Field(description="READY: its next request is answered.")
    reason: str = Field(description="Whether it is in memory or loaded by its next request.")
