"""The Open Inference Protocol as its official client speaks it, and as nobody should."""

import base64
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel, SecretStr
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from api.app import create_app
from api.settings import ApiSettings
from api.tensors import Signature, TensorType, read_request, signature, write_outputs
from store import keys, projects
from store.session import connect
from tasks.catalog import tasks
from tasks.parts.problems import Invalid
from tests.api.serving_world import KEY, World, untrained

BEARER = {"Authorization": f"Bearer {KEY}"}
BODY_BYTES = 200_000
LENGTH = "Inference-Header-Content-Length"


def picture(colour: int) -> bytes:
    packed = BytesIO()
    Image.new("L", (12, 12), colour).save(packed, "PNG")
    return packed.getvalue()


INPUTS: dict[str, list[dict[str, Any]]] = {
    "tabular-classification": [
        {"length": 3.25, "colour": "red", "picked": "2024-03-05"},
        {"length": None, "colour": "blue", "picked": "2024-11-25"},
        {"length": 6.5, "colour": "", "picked": ""},
    ],
    "tabular-regression": [{"size": 50.5, "place": "town"}, {"size": 120.0, "place": "village"}],
    "text-classification": [{"text": "What a lovely film!"}, {"text": "Käse, 漢字 and nothing"}],
    "image-classification": [{"image": picture(0)}, {"image": picture(200)}],
}
"""Inputs for the toy data of each task."""


class Served:
    """A running service with a model for every task, named after it."""

    def __init__(self, address: str, world: World) -> None:
        self.address, self.world = address, world
        self.http = httpx2.Client(base_url=f"http://{address}", headers=BEARER, timeout=60)

    def post(self, path: str, content: bytes, **headers: str) -> httpx2.Response:
        return self.http.post(path, content=content, headers=headers)

    def native(self, task: str) -> list[dict[str, Any]]:
        """What the service's own route answers for the inputs of a task."""
        inputs = [
            {name: _in_json(value) for name, value in example.items()} for example in INPUTS[task]
        ]
        answer = self.http.post(f"/v1/models/{task}/predict", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["predictions"]
        return found


def _in_json(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def served(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("open-inference")
    (folder / "modelyard.sqlite").write_bytes(_sqlite_template.read_bytes())
    url = f"sqlite:///{folder / 'modelyard.sqlite'}"
    database = connect(url)
    world = World(database)
    for task in INPUTS:
        world.publish(task, untrained(task))
    found = ApiSettings(
        data_dir=folder, database_url=url, admin_key=SecretStr(KEY), body_bytes=BODY_BYTES
    )
    with running(found) as address:
        served = Served(address, world)
        yield served
        served.http.close()
    database.dispose()


@contextmanager
def running(settings: ApiSettings) -> Iterator[str]:
    """Host and port of a server with these settings."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def triton(served: Served) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(served.address) as client:
        yield client


def tensors(task: str, metadata: Any, *, binary: bool) -> list[InferInput]:
    """The inputs of a task as the model's metadata describe them."""
    found = []
    for described in metadata["inputs"]:
        values = [example[described["name"]] for example in INPUTS[task]]
        if described["datatype"] == "BYTES" and not binary:
            values = [_in_json(value) for value in values]
        dtype = {"BYTES": np.object_, "FP64": np.float64}[described["datatype"]]
        array = np.array(values, dtype=dtype)
        tensor = InferInput(described["name"], list(array.shape), described["datatype"])
        found.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return found


# What the official client is told


def test_the_server_is_live_and_ready_for_whoever_asks(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()


def test_the_server_names_its_extensions(triton: InferenceServerClient) -> None:
    found = triton.get_server_metadata(headers=BEARER)
    assert found["name"] == "modelyard"
    assert found["extensions"] == ["binary_tensor_data", "model_repository"]


def test_a_key_is_needed_for_the_rest(triton: InferenceServerClient, served: Served) -> None:
    with pytest.raises(InferenceServerException, match="Send an API key"):
        triton.get_server_metadata()
    assert not triton.is_model_ready("text-classification")
    with served.world.database.transaction() as session:
        other = projects.ensure(session, "other").id
        stranger = keys.create(session, other, "stranger", ["predict"])[1]
    headers = {"Authorization": f"Bearer {stranger}"}
    assert not triton.is_model_ready("text-classification", headers=headers)
    with pytest.raises(InferenceServerException, match="404"):
        triton.get_model_metadata("text-classification", headers=headers)
    assert triton.get_model_repository_index(headers=headers) == []
    with pytest.raises(InferenceServerException, match="403"):
        triton.unload_model("text-classification", headers=headers)


def test_ready_is_what_would_be_answered(triton: InferenceServerClient, served: Served) -> None:
    name = "text-classification"
    assert triton.is_model_ready(name, headers=BEARER)
    assert triton.is_model_ready(name, "1", headers=BEARER)
    assert triton.is_model_ready(f"{name}@1", headers=BEARER)
    for unknown, version in ((name, "2"), ("nothing", ""), (f"{name}@live", ""), ("job_x", "")):
        assert not triton.is_model_ready(unknown, version, headers=BEARER)
    job = served.world.start("unfinished", untrained("tabular-classification"))
    assert not triton.is_model_ready(job.id, headers=BEARER)


def test_metadata_follow_from_the_types_of_the_task(triton: InferenceServerClient) -> None:
    def told(task: str, version: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        found = triton.get_model_metadata(task, version, headers=BEARER)
        assert (found["name"], found["versions"]) == (task, ["1"])
        inputs, outputs = (
            {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in found[side]}
            for side in ("inputs", "outputs")
        )
        return inputs, outputs

    text, number, whole = ("BYTES", [-1]), ("FP64", [-1]), {"prediction": ("BYTES", [-1])}
    labels = {"label": text, "scores": ("FP64", [-1, 2]), **whole}
    table = {"length": number, "colour": text, "picked": text}
    assert told("tabular-classification") == (table, labels)
    assert told("tabular-regression", "1") == (
        {"size": number, "place": text},
        {"value": number, **whole},
    )
    assert told("text-classification") == ({"text": text}, labels)
    assert told("image-classification") == ({"image": text}, labels)
    outputs = triton.get_model_metadata("image-classification", headers=BEARER)["outputs"]
    assert outputs[1]["parameters"] == {"labels": ["lying", "standing"]}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("task", INPUTS)
def test_answers_are_those_of_the_native_route(
    triton: InferenceServerClient, served: Served, task: str, binary: bool
) -> None:
    metadata = triton.get_model_metadata(task, headers=BEARER)
    outputs = [
        InferRequestedOutput(output["name"], binary_data=binary) for output in metadata["outputs"]
    ]
    result = triton.infer(
        task,
        tensors(task, metadata, binary=binary),
        outputs=outputs,
        request_id="7",
        headers=dict(BEARER),
    )
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (task, "1", "7")
    native = served.native(task)
    assert [json.loads(found) for found in result.as_numpy("prediction")] == native
    for name in native[0].keys() - {"scores"}:
        found = [_text(element) for element in result.as_numpy(name)]
        assert found == [prediction[name] for prediction in native]
    if "scores" in native[0]:
        labels = metadata["outputs"][1]["parameters"]["labels"]
        wanted = [[prediction["scores"][label] for label in labels] for prediction in native]
        assert result.as_numpy("scores").tolist() == wanted


def _text(element: Any) -> Any:
    return element.decode() if isinstance(element, bytes) else element


def test_without_a_choice_the_usual_outputs_come(
    triton: InferenceServerClient, served: Served
) -> None:
    task = "tabular-classification"
    metadata = triton.get_model_metadata(task, headers=BEARER)
    inputs = tensors(task, metadata, binary=True)
    for compression in (None, "gzip", "deflate"):
        result = triton.infer(
            task,
            inputs,
            model_version="1",
            headers=dict(BEARER),
            request_compression_algorithm=compression,
        )
        names = [output["name"] for output in result.get_response()["outputs"]]
        assert names == ["label", "scores"]
        wanted = [prediction["label"] for prediction in served.native(task)]
        assert [_text(element) for element in result.as_numpy("label")] == wanted


def test_a_column_left_out_has_no_value_and_shapes_may_be_columns(
    triton: InferenceServerClient, served: Served
) -> None:
    size = InferInput("size", [2, 1], "FP32")
    size.set_data_from_numpy(np.array([[50.5], [np.nan]], np.float32))
    result = triton.infer("tabular-regression", [size], headers=dict(BEARER))
    native = served.http.post(
        "/v1/models/tabular-regression/predict",
        json={"inputs": [{"size": 50.5, "place": None}, {}]},
    ).json()["predictions"]
    assert result.as_numpy("value").tolist() == [found["value"] for found in native]


def test_models_are_loaded_and_unloaded(triton: InferenceServerClient) -> None:
    name = "tabular-regression"

    def reason() -> str:
        index = triton.get_model_repository_index(headers=BEARER)
        assert {(e["name"], e["version"], e["state"]) for e in index} == {
            (task, "1", "READY") for task in INPUTS
        }
        return next(str(entry["reason"]) for entry in index if entry["name"] == name)

    triton.load_model(name, headers=BEARER)
    assert reason() == "in memory"
    triton.unload_model(name, headers=BEARER)
    assert reason() == "loaded when asked"
    assert triton.is_model_ready(name, headers=BEARER)
    size = InferInput("size", [1], "INT64").set_data_from_numpy(np.array([80]))
    assert triton.infer(name, [size], headers=dict(BEARER)).as_numpy("value").shape == (1,)
    assert reason() == "in memory"
    for do in (triton.load_model, triton.unload_model):
        with pytest.raises(InferenceServerException, match="404"):
            do("nothing", headers=BEARER)


def test_a_wrong_tensor_is_named_with_what_is_allowed(triton: InferenceServerClient) -> None:
    def refusal(name: str, array: Any, datatype: str, task: str = "tabular-regression") -> str:
        tensor = InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)
        with pytest.raises(InferenceServerException) as raised:
            triton.infer(task, [tensor], headers=dict(BEARER))
        assert raised.value.status() == "422"
        return str(raised.value.message())

    one = np.ones(1)
    assert "inputs.sizes: the model has no such input" in refusal("sizes", one, "FP64")
    assert "['size', 'place']" in refusal("sizes", one, "FP64")
    assert "inputs.place.datatype: not a datatype" in refusal("place", one, "FP64")
    assert "allowed: ['BYTES']" in refusal("place", one, "FP64")
    assert "inputs.size.shape: not a shape" in refusal("size", np.ones((2, 2)), "FP64")
    assert "found [1001]" in refusal("size", np.ones(1_001), "FP64")
    texts = np.array(["12", "many"], np.object_)
    assert "inputs.1.size: wrong type of value, found" in refusal("size", texts, "BYTES")
    broken = np.array([b"no image"], np.object_)
    assert "not a readable image" in refusal("image", broken, "BYTES", "image-classification")
    latin = np.array([b"caf\xe9"], np.object_)
    assert "inputs.text.0: 'utf-8'" in refusal("text", latin, "BYTES", "text-classification")


# What anybody may send


def test_a_body_may_be_the_only_input_itself(served: Served) -> None:
    for task, body in (("image-classification", picture(0)), ("text-classification", b"Good.")):
        path = f"/v2/models/{task}/infer"
        answer = served.post(path, body, **{LENGTH: "0"})
        assert answer.status_code == 200, answer.text
        size = int(answer.headers[LENGTH])
        names = [output["name"] for output in json.loads(answer.content[:size])["outputs"]]
        assert names == ["label", "scores"]
    answer = served.post("/v2/models/tabular-regression/infer", b"", **{LENGTH: "0"})
    assert answer.status_code == 422
    assert LENGTH in answer.json()["error"]


def value(name: str = "size", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [1], "datatype": "FP64", "data": [1.5], **more}


SIZE_8 = {"parameters": {"binary_data_size": 8}, "data": None}
BAD: list[tuple[Any, bytes, str | None, str]] = [
    ({"inputs": []}, b"", None, "inputs"),
    ({"inputs": [value()], "outputs": [{"name": "prize"}]}, b"", None, "outputs.prize"),
    ({"inputs": [value()], "outputs": [{"name": "value"}] * 2}, b"", None, "outputs.value"),
    ({"inputs": [value(), value()]}, b"", None, "inputs.size: is there more than once"),
    ({"inputs": [value(data=[])]}, b"", None, "inputs.size.data"),
    ({"inputs": [value(data=None)]}, b"", None, "found 'neither'"),
    ({"inputs": [value(data=["1"])]}, b"", None, "inputs.size.data.0"),
    ({"inputs": [value(data=[True])]}, b"", None, "inputs.size.data.0"),
    ({"inputs": [value(data=[[1.5]])]}, b"", None, "inputs.size.data.0"),
    ({"inputs": [value(data=[10**400])]}, b"", None, "inputs.size.data"),
    ({"inputs": [value(data=[1e300], datatype="FP32")]}, b"", None, "inputs.size.data"),
    ({"inputs": [value(data=[300], datatype="INT8")]}, b"", None, "inputs.size.data"),
    ({"inputs": [value(shape=[])]}, b"", None, "inputs.size.shape"),
    ({"inputs": [value(shape=[-1])]}, b"", None, "inputs.0.shape.0"),
    ({"inputs": [value(shape=[10**30])]}, b"", None, "inputs.size.shape"),
    ({"inputs": [value(datatype="BF16")]}, b"", None, "inputs.size.datatype"),
    ({"inputs": [value(datatype=["FP64"])]}, b"", None, "inputs.0.datatype"),
    (
        {"inputs": [value(), value("place", datatype="BYTES", shape=[2], data=["a", "b"])]},
        b"",
        None,
        "inputs.place.shape: not the number of examples",
    ),
    ({"inputs": [value(parameters={"shared_memory_region": "a"})]}, b"", None, "shared_memory"),
    ({"inputs": [value()], "parameters": {"sequence_id": 1}}, b"", None, "sequence_id"),
    ({"inputs": [value()]}, b"12345678", "start", "binary data of another size"),
    ({"inputs": [value(**SIZE_8)]}, b"1234567", "start", "binary data of another size"),
    ({"inputs": [value(**SIZE_8, shape=[2])]}, b"12345678", "start", "binary_data_size"),
    ({"inputs": [value(**{**SIZE_8, "data": [1]})]}, b"12345678", "start", "found 'both'"),
    (
        {"inputs": [value("place", datatype="BYTES", **SIZE_8)]},
        b"\xff\xff\xff\xff1234",
        "start",
        "inputs.place.parameters.binary_data_size",
    ),
    (
        {"inputs": [value("place", datatype="BYTES", **SIZE_8)]},
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
        "start",
        "inputs.place.parameters.binary_data_size",
    ),
    ({"inputs": [value(parameters={"binary_data_size": -8})]}, b"", None, "binary_data_size"),
    ({"inputs": [value()]}, b"", "-1", LENGTH),
    ({"inputs": [value()]}, b"", "9" * 5_000, LENGTH),
    ({"inputs": [value()]}, b"", "1_0", LENGTH),
    ({"inputs": [value()]}, b"", "5", "not JSON"),
    ([], b"", None, "body"),
]


@pytest.mark.parametrize(("body", "data", "header", "named"), BAD)
def test_a_bad_request_is_refused_naming_what_is_wrong(
    served: Served, body: Any, data: bytes, header: str | None, named: str
) -> None:
    text = json.dumps(body).encode()
    headers = {} if header is None else {LENGTH: str(len(text)) if header == "start" else header}
    answer = served.post("/v2/models/tabular-regression/infer", text + data, **headers)
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["error"] == answer.json()["detail"]
    assert named in answer.json()["error"]


def test_a_compressed_body_is_bounded_and_whole(served: Served) -> None:
    path = "/v2/models/tabular-regression/infer"
    good = json.dumps({"inputs": [value()]}).encode()
    assert served.post(path, gzip.compress(good), **{"Content-Encoding": "gzip"}).status_code == 200
    for body, encoding, status in (
        (gzip.compress(b" " * (BODY_BYTES + 1)), "gzip", 413),
        (gzip.compress(good)[:-3], "gzip", 422),
        (gzip.compress(good) + b"more", "gzip", 422),
        (gzip.compress(good), "deflate", 422),
        (b"", "gzip", 422),
        (good, "br", 415),
    ):
        answer = served.post(path, body, **{"Content-Encoding": encoding})
        assert (answer.status_code, "error" in answer.json()) == (status, True)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
_tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["size", "place", "sizes", "\ud800"]) | _json,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | _json,
        "datatype": st.sampled_from(["FP64", "FP16", "UINT8", "BYTES", "BOOL"]) | _json,
    },
    optional={
        "data": st.lists(st.floats() | st.text(max_size=3) | _json, max_size=3) | _json,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 20)}) | _json,
    },
)
_outputs = st.fixed_dictionaries(
    {"name": st.sampled_from(["value", "prediction", "x"]) | _json}, optional={"parameters": _json}
)
_requests = st.fixed_dictionaries(
    {"inputs": st.lists(_tensors, max_size=3) | _json},
    optional={"outputs": st.lists(_outputs, max_size=2) | _json, "id": _json, "parameters": _json},
)


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    body=_requests.map(json.dumps).map(str.encode) | st.binary(max_size=40),
    data=st.binary(max_size=20),
    length=st.none() | st.just("start") | st.text("-+0123456789x", max_size=4),
    encoding=st.sampled_from(["identity"] * 8 + ["gzip", "deflate"]),
)
def test_no_body_breaks_the_service(
    served: Served, body: bytes, data: bytes, length: str | None, encoding: str
) -> None:
    headers = {"Content-Encoding": encoding}
    if length is not None:
        headers[LENGTH] = str(len(body)) if length == "start" else length
    answer = served.post("/v2/models/tabular-regression/infer", body + data, **headers)
    assert answer.status_code == 200 or (400 <= answer.status_code < 500 and answer.json()["error"])


# Tensors of every kind


@pytest.mark.parametrize("task", sorted(tasks()))
def test_every_task_has_tensors_to_send_and_to_get(task: str) -> None:
    model = signature(untrained(task).trained)
    assert model.inputs
    assert model.usual


def ask(kind: type, **tensor: Any) -> list[Any]:
    """The values that a model with one input of that kind reads from a tensor."""
    model = Signature({"x": TensorType("x", kind)}, {"y": TensorType("y", float)})
    data = tensor.pop("binary", None)
    if data is not None:
        tensor["parameters"] = {"binary_data_size": len(data)}
    text = json.dumps({"inputs": [{"name": "x", **tensor}]}).encode()
    header = None if data is None else str(len(text))
    asked = read_request(model, text + (data or b""), header, 10)
    return [example["x"] for example in asked.examples]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "UINT16", "INT32", "UINT64"])
def test_numbers_of_any_size_are_numbers(datatype: str) -> None:
    dtype = datatype.lower().replace("fp", "float")
    values = np.array([0, 1, 100], dtype)
    assert ask(float, shape=[3], datatype=datatype, binary=values.tobytes()) == [0, 1, 100]
    assert ask(float, shape=[3, 1], datatype=datatype, data=[[0], [1], [100]]) == [0, 1, 100]


def test_nan_and_null_say_that_a_number_is_missing() -> None:
    binary = np.array([np.nan, 2.5]).tobytes()
    assert ask(float, shape=[2], datatype="FP64", binary=binary) == [None, 2.5]
    assert ask(float, shape=[2], datatype="FP64", data=[None, float("nan")]) == [None, None]


def test_booleans_are_bytes_of_0_and_1() -> None:
    assert ask(bool, shape=[2], datatype="BOOL", binary=b"\x00\x01") == [False, True]
    assert ask(bool, shape=[2], datatype="BOOL", data=[False, True]) == [False, True]
    with pytest.raises(Invalid, match="not of the datatype"):
        ask(bool, shape=[1], datatype="BOOL", data=[1])


def test_what_is_no_plain_value_is_a_json_text() -> None:
    boxes = [{"x": 1, "y": [2, 3]}, [4]]
    texts = [json.dumps(box) for box in boxes]
    assert ask(object, shape=[2], datatype="BYTES", data=texts) == boxes
    with pytest.raises(Invalid, match="allowed: JSON"):
        ask(object, shape=[1], datatype="BYTES", data=["{"])


def test_predictions_that_are_no_tensors_are_given_as_json() -> None:
    class Boxes(BaseModel):
        count: int
        boxes: list[dict[str, float]]

    kinds = [
        TensorType("count", int),
        TensorType("boxes", object),
        TensorType("prediction", object),
    ]
    model = Signature({}, {kind.name: kind for kind in kinds})
    assert model.usual == ["count", "boxes", "prediction"]
    wanted = [(kinds[0], True), (kinds[1], False), (kinds[2], True)]
    found = [Boxes(count=1, boxes=[{"x": 1.5}]), Boxes(count=0, boxes=[])]
    tensors, data = write_outputs(found, wanted)
    assert [tensor.shape for tensor in tensors] == [[2]] * 3
    assert tensors[1].data == ['[{"x":1.5}]', "[]"]
    assert data[:16] == np.array([1, 0], "<i8").tobytes()
    texts = [prediction.model_dump_json().encode() for prediction in found]
    assert data[16:] == b"".join(struct.pack("<I", len(text)) + text for text in texts)
