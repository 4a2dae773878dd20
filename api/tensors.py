"""Named tensors: which ones a model reads and gives, and their data in JSON and in binary.

Names and elements follow from the types of the task's inputs and predictions. The forms are those of the
Open Inference Protocol, version 2, and of its binary tensor data extension.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from api import faults
from api.inference_schemas import InferIn, InputTensor, OutputTensor
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained

WHOLE = "prediction"
"""The output that is each prediction as a JSON text."""
SHOWN = 50
"""Names that a problem lists."""
LENGTH_HEADER = "Inference-Header-Content-Length"

_DATATYPES = {float: "FP64", int: "INT64", bool: "BOOL", str: "BYTES", bytes: "BYTES"}
_WHOLE_NUMBERS = {
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
}
_NUMBERS = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2", **_WHOLE_NUMBERS}
_NUMPY = {**_NUMBERS, "BOOL": "?"}
_READ: dict[type, Sequence[str]] = {
    float: [*_NUMBERS, "BYTES"],
    int: [*_WHOLE_NUMBERS, "BYTES"],
    bool: ["BOOL", "BYTES"],
}
_IN_JSON: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_NUMBERS, (int, float, NoneType)),
    **dict.fromkeys(_WHOLE_NUMBERS, (int,)),
    "BOOL": (bool,),
    "BYTES": (str,),
}
_LENGTH = struct.Struct("<I")


class TensorType(NamedTuple):
    """A tensor of a model: `type` is that of its elements in Python; `object` ones are JSON texts."""

    name: str
    type: type
    labels: Sequence[str] | None = None
    """Names of the numbers that it has for each example; None when it has one value."""

    @property
    def datatype(self) -> str:
        return _DATATYPES.get(self.type, "BYTES")

    @property
    def read(self) -> Sequence[str]:
        """The datatypes that are understood when it is sent."""
        return _READ.get(self.type, ["BYTES"])

    def shape(self, examples: int) -> list[int]:
        return [examples] if self.labels is None else [examples, len(self.labels)]


class Signature(NamedTuple):
    """The tensors of a model, by their names."""

    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]

    @property
    def usual(self) -> list[str]:
        """The outputs that are given when none are asked for: all, unless they would say it twice."""
        plain = [name for name in self.outputs if name != WHOLE]
        return plain if all(self.outputs[n].type is not object for n in plain) else [*self.outputs]


class Asked(NamedTuple):
    """A request as the model is asked: inputs by their names, and outputs, each with whether in binary."""

    id: str | None
    examples: list[dict[str, Any]]
    outputs: list[tuple[TensorType, bool]]


def signature(model: Trained) -> Signature:
    """The tensors of a model, from the types of its task and what its codec has learned."""
    inputs = model.codec.input_fields(model.task.input_type).items()
    return Signature(
        {name: TensorType(name, _element(annotation)) for name, annotation in inputs},
        {output.name: output for output in _outputs(model)},
    )


def _outputs(model: Trained) -> Iterator[TensorType]:
    labels = getattr(model.codec, "labels", None)
    for name, field in model.task.answer_type.model_fields.items():
        if field.annotation == dict[str, float] and labels is not None:
            yield TensorType(name, float, labels)
        else:
            yield TensorType(name, _element(field.annotation))
    yield TensorType(WHOLE, object)


def _element(annotation: Any) -> type:
    """The plain type that values of this annotation have; object for all others."""
    options = {annotation}
    if get_origin(annotation) in (Union, UnionType):
        options = {*get_args(annotation)} - {NoneType}
    found = options.pop()
    is_missable = found in (float, str)  # NaN or an empty text says that there is no value
    is_plain = found in _DATATYPES and not options and (found is annotation or is_missable)
    return found if is_plain else object


# Requests


def read_request(model: Signature, body: bytes, header: str | None, most: int) -> Asked:
    """What a body asks for; `header` says how long the JSON at its start is, if that is not all.

    At most `most` examples. Raises Invalid, naming tensors by their names.
    """
    length = len(body) if header is None else _length(header, len(body))
    if header is not None and length == 0:
        return _read_raw(model, body)
    asked = _read_json(body[:length])
    _check_names([tensor.name for tensor in asked.inputs], model.inputs, "input")
    _check_names([output.name for output in asked.outputs], model.outputs, "output")
    columns = _read_columns(model, asked.inputs, memoryview(body)[length:], most)
    examples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    usual = asked.parameters.binary_data_output
    wanted = {output.name: output.parameters.binary_data for output in asked.outputs}
    outputs = [
        (model.outputs[name], usual if in_binary is None else in_binary)
        for name, in_binary in (wanted or dict.fromkeys(model.usual)).items()
    ]
    return Asked(asked.id, examples, outputs)


def _length(header: str, size: int) -> int:
    """Bytes of JSON at the start of a body of that size. Raises Invalid."""
    is_number = header.isascii() and header.isdecimal() and len(header) < 20
    if not is_number or int(header) > size:
        message = "not a length of JSON in this body"
        raise Invalid(Problem(("header", LENGTH_HEADER), message, header, f"0 to {size}"))
    return int(header)


def _read_raw(model: Signature, body: bytes) -> Asked:
    """One example, whose only input is the body as it is; the answer is in binary. Raises Invalid."""
    kinds = [*model.inputs.values()]
    if len(kinds) != 1 or kinds[0].datatype != "BYTES":
        message = "0 is for models whose only input is of BYTES"
        raise Invalid(Problem(("header", LENGTH_HEADER), message, 0, "JSON before the data"))
    example = {kinds[0].name: _value(kinds[0], 0, body)}
    return Asked(None, [example], [(model.outputs[name], True) for name in model.usual])


def _read_json(text: bytes) -> InferIn:
    try:
        value = pydantic_core.from_json(text)
    except ValueError as error:
        raise Invalid(
            Problem(("body",), f"not JSON: {error}", text[:40], '{"inputs": [...]}')
        ) from None
    return faults.read(InferIn, value)


def _check_names(names: Sequence[str], known: Mapping[str, Any], what: str) -> None:
    """Raises Invalid for names that are unknown, or there twice."""
    problems = []
    for name, times in Counter(names).items():
        if name not in known:
            message = f"the model has no such {what}"
            problems.append(Problem((f"{what}s", name), message, name, [*known][:SHOWN]))
        elif times > 1:
            problems.append(Problem((f"{what}s", name), "is there more than once", times, 1))
    if problems:
        raise Invalid(*problems)


def _read_columns(
    model: Signature, tensors: Sequence[InputTensor], data: memoryview, most: int
) -> dict[str, list[Any]]:
    """The values of each input for all examples. Raises Invalid with the problems of all of them."""
    sizes = [tensor.parameters.binary_data_size for tensor in tensors]
    said = sum(size or 0 for size in sizes)
    if said != len(data):
        message = "binary data of another size than `binary_data_size` says"
        raise Invalid(Problem(("inputs",), message, f"{len(data)} bytes", f"{said} bytes"))
    columns: dict[str, list[Any]] = {}
    problems: list[Problem] = []
    start, examples = 0, _examples(tensors[0], most)
    for tensor, size in zip(tensors, sizes, strict=True):
        part = None if size is None else data[start : start + size]
        start += size or 0
        try:
            columns[tensor.name] = _read_column(model.inputs[tensor.name], tensor, part, examples)
        except Invalid as error:
            problems += error.problems
    if problems:
        raise Invalid(*problems)
    return columns


def _examples(tensor: InputTensor, most: int) -> int:
    """How many examples a tensor has values for. Raises Invalid."""
    examples = tensor.shape[0] if tensor.shape else 0
    if not 1 <= examples <= most or tensor.shape not in ([examples], [examples, 1]):
        allowed = f"[examples] or [examples, 1], 1 to {most:,} examples"
        place = ("inputs", tensor.name, "shape")
        raise Invalid(Problem(place, "not a shape of this input", tensor.shape, allowed))
    return examples


def _read_column(
    kind: TensorType, tensor: InputTensor, data: memoryview | None, examples: int
) -> list[Any]:
    """The values of a tensor, whose data are in JSON when None are given. Raises Invalid."""
    place, datatype = ("inputs", tensor.name), tensor.datatype
    if datatype not in kind.read:
        message = "not a datatype of this input"
        raise Invalid(Problem((*place, "datatype"), message, datatype, kind.read))
    if tensor.shape not in ([examples], [examples, 1]):
        message = "not the number of examples of the first input"
        raise Invalid(Problem((*place, "shape"), message, tensor.shape, [examples]))
    if (data is None) == (tensor.data is None):
        message, found = (
            "either `data` or `binary_data_size`",
            "neither" if data is None else "both",
        )
        raise Invalid(Problem((*place, "data"), message, found))
    if datatype == "BYTES":
        elements = _in_json(tensor, examples) if data is None else _unpack(tensor, data, examples)
        return [_value(kind, number, element) for number, element in enumerate(elements)]
    if data is None:
        numbers = _numbers(tensor, _in_json(tensor, examples))
    else:
        numbers = _view(tensor, data, examples)
    values: list[Any] = numbers.tolist()
    if numbers.dtype.kind == "f" and np.isnan(numbers).any():
        return [None if value != value else value for value in values]
    return values


def _in_json(tensor: InputTensor, examples: int) -> list[Any]:
    """Elements that were sent in JSON. Raises Invalid."""
    place, data, allowed = ("inputs", tensor.name, "data"), tensor.data or [], tensor.datatype
    if len(tensor.shape) == 2 and all(isinstance(row, list) for row in data):
        data = [element for row in data for element in row]
    if len(data) != examples:
        raise Invalid(Problem(place, "not as many elements as the shape says", len(data), examples))
    for number, element in enumerate(data):
        if type(element) not in _IN_JSON[tensor.datatype]:
            raise Invalid(Problem((*place, number), "not of the datatype", element, allowed))
    return data


def _numbers(tensor: InputTensor, elements: Sequence[Any]) -> NDArray[Any]:
    """Numbers that were sent in JSON, as their datatype holds them. Raises Invalid."""
    try:
        with np.errstate(over="raise"):
            return np.array(elements, dtype=_NUMPY[tensor.datatype])
    except ArithmeticError as error:
        place = ("inputs", tensor.name, "data")
        raise Invalid(Problem(place, str(error), None, tensor.datatype)) from None


def _view(tensor: InputTensor, data: memoryview, examples: int) -> NDArray[Any]:
    """Numbers that were sent in binary. Raises Invalid."""
    dtype = np.dtype(_NUMPY[tensor.datatype])
    if len(data) != examples * dtype.itemsize:
        message = f"not the size of {examples} elements of {tensor.datatype}"
        raise Invalid(Problem(_size_of(tensor), message, len(data), examples * dtype.itemsize))
    return np.frombuffer(data, dtype)


def _unpack(tensor: InputTensor, data: memoryview, examples: int) -> list[bytes]:
    """Elements of BYTES that were sent in binary, each behind its length. Raises Invalid."""
    elements: list[bytes] = []
    start = 0
    while start + _LENGTH.size <= len(data) and len(elements) < examples:
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size + length
        elements.append(bytes(data[start - length : start]))
    if start != len(data) or len(elements) != examples:
        message = "not the size of the elements and of their lengths, 4 bytes each"
        raise Invalid(Problem(_size_of(tensor), message, len(data), f"{examples} elements"))
    return elements


def _size_of(tensor: InputTensor) -> tuple[str, ...]:
    return "inputs", tensor.name, "parameters", "binary_data_size"


def _value(kind: TensorType, number: int, element: bytes | str) -> Any:
    """An element of BYTES as the codec reads it. Raises Invalid for bytes that are no text."""
    if kind.type is bytes:
        return element
    try:
        text = element.decode() if isinstance(element, bytes) else element
        return pydantic_core.from_json(text) if kind.type is object else text
    except ValueError as error:
        allowed = "JSON" if kind.type is object else "UTF-8"
        place = ("inputs", kind.name, number)
        raise Invalid(Problem(place, str(error), element[:40], allowed)) from None


# Answers


def write_outputs(
    predictions: Sequence[Any], wanted: Sequence[tuple[TensorType, bool]]
) -> tuple[list[OutputTensor], bytes]:
    """The outputs, and the bytes behind the JSON of those that are wanted in binary."""
    tensors, parts = [], []
    for kind, in_binary in wanted:
        values = _values(kind, predictions)
        tensor = OutputTensor(
            name=kind.name, shape=kind.shape(len(predictions)), datatype=kind.datatype
        )
        if in_binary:
            parts.append(_pack(kind, values))
            tensor.parameters = {"binary_data_size": len(parts[-1])}
        else:
            tensor.data = values
        tensors.append(tensor)
    return tensors, b"".join(parts)


def _values(kind: TensorType, predictions: Sequence[Any]) -> list[Any]:
    """The tensor's elements, row by row."""
    if kind.name == WHOLE:
        return [_json(prediction).decode() for prediction in predictions]
    found = [getattr(prediction, kind.name) for prediction in predictions]
    if kind.labels is not None:
        return [scores[label] for scores in found for label in kind.labels]
    if kind.type is object:
        return [_json(value).decode() for value in found]
    return ["" if value is None else value for value in found] if kind.type is str else found


def _pack(kind: TensorType, values: Sequence[Any]) -> bytes:
    if kind.datatype != "BYTES":
        return np.array(values, dtype=_NUMPY[kind.datatype]).tobytes()
    elements = (value.encode() if isinstance(value, str) else value for value in values)
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def _json(value: Any) -> bytes:
    return pydantic_core.to_json(value, inf_nan_mode="null", bytes_mode="base64")
