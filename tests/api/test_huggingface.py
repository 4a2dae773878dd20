"""Hugging Face's own client against a served API: each task, answers as `predict` gives them, errors in words."""

import asyncio
import base64
import json
import random
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, close_session, constants
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from api.routes import huggingface
from store.session import Database
from tasks.parts.labels import LabelPrediction
from tasks.parts.sounds import silence
from tests import processes
from tests.api.serving_world import (
    World,
    client,
    image_example,
    picture,
    row,
    table_example,
    untrained,
)
from tests.conftest import opened

SEGMENTED = ("semantic-segmentation", "instance-segmentation")


class Served(NamedTuple):
    """A running API, and a job of its that has no checkpoint yet."""

    url: str
    key: str
    later: str

    def post(self, path: str, **what: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.key}", **what.pop("headers", {})}
        return httpx2.post(f"{self.url}{path}", headers=headers, timeout=60, **what)


def texts() -> str:
    words = {"good": ["lovely", "bright"], "bad": ["dull", "grey"], "odd": ["strange", "weird"]}
    rows = [
        f"a {w} day {n},{label}" for label, found in words.items() for w in found for n in "123"
    ]
    return "\n".join(["text,label", *rows])


def topics() -> str:
    named = [["sea"], ["sky", "sea"], ["sky"], []]
    return "\n".join(
        json.dumps({"text": f"over {' and '.join(of)} {n}", "labels": of})
        for n in range(6)
        for of in named
    )


def claims() -> str:
    rows = [f"a {who} eats,a {who} {w}eats,{w}" for who in ("cat", "dog") for w in ("", "never ")]
    return "\n".join(["text_a,text_b,label", *(f"{row}said" for row in rows * 6)])


def phrases() -> str:
    words = {"cat": "Katze", "dog": "Hund", "cow": "Kuh"}
    return "\n".join(
        ["source,target", *(f"a {e} {n},{d} {n}" for e, d in words.items() for n in "12345")]
    )


def fishes() -> str:
    draw = random.Random(0)
    lengths = [draw.uniform(10, 40) for _ in range(60)]
    return "\n".join(["length,species,weight", *(f"{n},{'ab'[n > 25]},{n * 9}" for n in lengths)])


@pytest.fixture(scope="module")
def served(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A served API with a model of each task."""
    folder = tmp_path_factory.mktemp("huggingface")
    url = f"sqlite:///{shutil.copy(_sqlite_template, folder / 'store.sqlite')}"
    with opened(url) as database:
        world = World(database)
        world.publish("rows")
        world.publish("pictures", image_example())
        world.publish("reviews", table_example("text-classification", texts()))
        world.publish("topics", table_example("text-classification", topics()))
        world.publish("claims", table_example("text-pair-classification", claims()))
        world.publish("fishes", table_example("tabular-regression", fishes()))
        for task in SEGMENTED:
            world.publish(task, untrained(task))
        for task in ("token-classification", "intent-and-slots"):
            world.publish(task, untrained(task))
        world.publish("german", table_example("text-to-text", phrases()))
        world.publish("tales", untrained("text-generation"))
        world.publish("tiles", untrained("object-detection"))
        world.publish("clean", untrained("image-to-image"))
        world.publish("calls", untrained("speech-recognition"))
        world.publish("painter", untrained("style-transfer"))
        later = world.start("later").id
        with processes.api(folder, url) as service:
            yield Served(service.url, service.key, later)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client sends no request, to here neither, where it is told to be offline; so its hub is nowhere."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    yield
    close_session()


def url_of(served: Served, model: str) -> str:
    return f"{served.url}/hf/models/{model}"


def hub(served: Served, model: str, token: str | None = None) -> InferenceClient:
    return InferenceClient(url_of(served, model), token=token or served.key)


def natively(served: Served, model: str, inputs: list[Any]) -> list[Any]:
    """The predictions of the native route."""
    answer = served.post(f"/v1/models/{model}/predict", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["predictions"]
    return found


def ranked(prediction: Any) -> list[tuple[str, float]]:
    """Labels with their scores, the best first."""
    return sorted(prediction["scores"].items(), key=lambda pair: -pair[1])


def pairs(answer: Any) -> list[tuple[str, float]]:
    return [(element.label, element.score) for element in answer]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_text_gets_its_labels_best_first(served: Served) -> None:
    text = "what a lovely day"
    [expected] = natively(served, "reviews", [{"text": text}])
    assert pairs(hub(served, "reviews").text_classification(text)) == ranked(expected)
    assert len(expected["scores"]) == 3
    best = hub(served, "reviews@1").text_classification(text, top_k=2, function_to_apply="softmax")
    assert pairs(best) == ranked(expected)[:2]


def test_a_text_with_several_labels_gets_the_score_of_each(served: Served) -> None:
    text = "over sky and sea"
    [expected] = natively(served, "topics", [{"text": text}])
    assert set(expected) == {"label", "scores", "labels"}
    assert expected["labels"] == [name for name, score in ranked(expected) if score >= 0.5]
    assert pairs(hub(served, "topics").text_classification(text)) == ranked(expected)
    best = hub(served, "topics").text_classification(text, top_k=1, function_to_apply="sigmoid")
    assert pairs(best) == ranked(expected)[:1]
    with pytest.raises(HfHubHTTPError, match="function_to_apply"):
        hub(served, "topics").text_classification(text, function_to_apply="softmax")
    tensors = served.post(
        "/v2/models/topics/infer",
        json={"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]},
    )
    assert tensors.status_code == 200, tensors.text
    found = {output["name"]: output["data"] for output in tensors.json()["outputs"]}
    assert found["scores"] == pytest.approx([expected["scores"][name] for name in ("sea", "sky")])
    assert json.loads(found["labels"][0]) == expected["labels"]


def test_a_text_gets_its_spans(served: Served) -> None:
    text = "they saw Ka Lo in Mi."
    [expected] = natively(served, "token-classification", [{"text": text}])
    assert expected["entities"]
    found = hub(served, "token-classification").token_classification(text)
    assert [(e.entity_group, e.word, e.start, e.end) for e in found] == [
        (e["label"], text[e["start"] : e["end"]], e["start"], e["end"])
        for e in expected["entities"]
    ]
    assert [e.score for e in found] == pytest.approx([e["score"] for e in expected["entities"]])
    tokens = hub(served, "token-classification").token_classification(
        text, aggregation_strategy="none", ignore_labels=[]
    )
    assert [(e.word, e.entity) for e in tokens] == list(
        zip(expected["tokens"], expected["tags"], strict=True)
    )


def test_a_text_gets_its_intents_best_first(served: Served) -> None:
    text = "please play jazz"
    [expected] = natively(served, "intent-and-slots", [{"text": text}])
    assert pairs(hub(served, "intent-and-slots").text_classification(text)) == ranked(expected)


def test_a_pair_of_texts_gets_its_labels_best_first(served: Served) -> None:
    pair = {"text_a": "a cat eats", "text_b": "a cat never eats"}
    [expected] = natively(served, "claims", [pair])
    # Its type says text; it sends whatever JSON it is given.
    found = hub(served, "claims").text_classification(pair)  # type: ignore[arg-type]
    assert pairs(found) == ranked(expected)
    with pytest.raises(HfHubHTTPError, match=r"inputs\.0"):
        hub(served, "claims").text_classification("a cat eats")


def test_an_image_gets_its_labels_however_it_is_sent(served: Served, tmp_path: Path) -> None:
    sent, asked = picture("red"), hub(served, "pictures")
    file = tmp_path / "red.png"
    file.write_bytes(sent)
    [expected] = [ranked(found) for found in natively(served, "pictures", [encoded(sent)])]
    assert pairs(asked.image_classification(sent)) == expected  # without a content type
    assert pairs(asked.image_classification(file)) == expected  # as image/png
    assert pairs(asked.image_classification(sent, top_k=1)) == expected[:1]  # as base64 in JSON


def test_objects_of_an_image_have_boxes_in_whole_pixels(served: Served) -> None:
    sent = picture("red")
    text = encoded(sent)
    native = natively(served, "tiles", [{"image": text, "threshold": 0.0}])[0]["objects"]
    expected = [(o["label"], o["score"], [*map(round, o["box"])]) for o in native]
    assert expected
    found = hub(served, "tiles").object_detection(sent, threshold=0.0)
    boxes = [(b.xmin, b.ymin, b.xmax, b.ymax) for b in (o.box for o in found)]
    assert [(o.label, o.score, [*b]) for o, b in zip(found, boxes, strict=True)] == expected
    assert hub(served, "tiles").object_detection(sent, threshold=1.0) == []
    assert hub(served, "tiles").object_detection(sent) == [o for o in found if o.score >= 0.3], (
        "as a file alone, which leaves the threshold open"
    )


@pytest.mark.parametrize("model", ["clean", "painter"])
def test_an_image_gets_an_image(served: Served, model: str) -> None:
    sent = picture("red")
    [expected] = natively(served, model, [encoded(sent)])
    found = hub(served, model).image_to_image(sent)
    shown = Image.open(BytesIO(base64.b64decode(expected["image"])))
    assert (found.size, found.tobytes()) == (shown.size, shown.tobytes())
    answer = served.post(f"/hf/models/{model}", json={"inputs": [encoded(sent)] * 2})
    assert answer.json() == [expected["image"]] * 2
    with pytest.raises(HfHubHTTPError, match="prompt"):
        hub(served, model).image_to_image(sent, prompt="a cat")


def test_a_sound_gets_its_text_and_the_times_of_its_words(served: Served) -> None:
    sent, asked = silence(8_000, 0.5), hub(served, "calls")
    (expected,) = natively(served, "calls", [{"audio": encoded(sent)}])
    found = asked.automatic_speech_recognition(sent)
    assert found.text == expected["text"]
    times = [[word["start"], word["end"]] for word in expected["words"]]
    assert [list(chunk.timestamp) for chunk in found.chunks or []] == times


def test_an_image_gets_a_mask_for_each_of_its_segments(served: Served) -> None:
    sent = picture("red")
    [semantic] = natively(served, SEGMENTED[0], [encoded(sent)])
    found = hub(served, SEGMENTED[0]).image_segmentation(sent)
    assert [(s.label, s.score) for s in found] == [
        (region["label"], pytest.approx(region["score"])) for region in semantic["classes"]
    ]
    with Image.open(BytesIO(base64.b64decode(semantic["mask"]))) as mask:
        numbers = np.asarray(mask)
    for segment, region in zip(found, semantic["classes"], strict=True):
        assert (np.asarray(segment.mask) == (numbers == region["index"])).all()

    [instances] = natively(served, SEGMENTED[1], [{"image": encoded(sent), "threshold": 0}])
    objects = hub(served, SEGMENTED[1]).image_segmentation(sent, threshold=0)
    assert len(objects) == len(instances["objects"])
    assert all(segment.mask.size == Image.open(BytesIO(sent)).size for segment in objects)


def test_a_table_gets_a_label_for_each_row(served: Served) -> None:
    rows = [row(n) for n in range(20)]
    expected = [found["label"] for found in natively(served, "rows", rows)]
    table = {name: [str(given[name]) for given in rows] for name in rows[0]}
    assert hub(served, "rows").tabular_classification(table) == expected
    assert set(expected) == {"high", "low"}


def test_a_table_gets_a_number_for_each_row(served: Served) -> None:
    table = {"length": ["12.5", "30"], "species": ["a", "b"]}
    rows = [{"length": 12.5, "species": "a"}, {"length": 30, "species": "b"}]
    expected = [found["value"] for found in natively(served, "fishes", rows)]
    # Its own method for this, `tabular_regression`, refuses every URL without asking it.
    assert hub(served, "fishes").tabular_classification(table) == expected


def test_a_text_is_translated_and_summed_up(served: Served) -> None:
    text = "a cat 1"
    [expected] = natively(served, "german", [{"source": text}])
    assert hub(served, "german").translation(text).translation_text == expected["target"]
    assert hub(served, "german").summarization(text).summary_text == expected["target"]
    answer = served.post(
        "/hf/models/german", json={"inputs": text, "parameters": {"max_new_tokens": 1}}
    )
    short = natively(served, "german", [{"source": text, "max_new_tokens": 1}])
    assert answer.json()[0]["generated_text"] == short[0]["target"]
    with pytest.raises(HfHubHTTPError, match="src_lang"):
        hub(served, "german").translation(text, src_lang="en", tgt_lang="de")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # for the client's own ways
def test_the_asynchronous_client_gets_the_same(served: Served) -> None:
    text, table = "a dull day", {name: [str(cell)] for name, cell in row(1).items()}

    async def ask(model: str, method: str, *given: Any) -> Any:
        url = url_of(served, model)
        async with AsyncInferenceClient(url, token=served.key) as client:
            return await getattr(client, method)(*given)

    async def ask_all() -> Any:
        return await asyncio.gather(
            ask("reviews", "text_classification", text),
            ask("pictures", "image_classification", picture("blue")),
            ask("rows", "tabular_classification", table),
        )

    of_text, of_image, of_row = asyncio.run(ask_all())
    assert of_text == hub(served, "reviews").text_classification(text)
    assert of_image == hub(served, "pictures").image_classification(picture("blue"))
    assert of_row == hub(served, "rows").tabular_classification(table)


def test_the_client_sees_whether_a_model_is_ready_and_what_it_is(served: Served) -> None:
    def asked(model: str) -> InferenceClient:
        return InferenceClient(url_of(served, model), provider="hf-inference", token=served.key)

    assert asked("reviews").health_check()
    assert not asked("nothing").health_check()
    info = asked("reviews").get_endpoint_info()
    assert (info["model_id"], info["model_pipeline_tag"]) == ("reviews@1", "text-classification")


# Errors, as the client shows them


def test_a_wrong_key_is_told_in_our_words(served: Served) -> None:
    with pytest.raises(HfHubHTTPError, match="There is no such API key"):
        hub(served, "reviews", token="hf_wrong").text_classification("a day")


def test_a_missing_model_and_one_without_checkpoint_are_told_in_our_words(served: Served) -> None:
    with pytest.raises(HfHubHTTPError, match="There is no model 'nothing'"):
        hub(served, "nothing").text_classification("a day")
    with pytest.raises(HfHubHTTPError, match="There is no model version 'reviews@2'"):
        hub(served, "reviews@2").text_classification("a day")
    with pytest.raises(HfHubHTTPError, match="has no checkpoint to predict with"):
        hub(served, served.later).text_classification("a day")


def test_what_cannot_be_read_is_told_in_our_words(served: Served) -> None:
    with pytest.raises(HfHubHTTPError, match="not a readable image"):
        hub(served, "pictures").image_classification(b"no image")
    with pytest.raises(HfHubHTTPError, match=r"table\.a\.1: wrong type of value"):
        hub(served, "rows").tabular_classification({"a": ["1", "much"], "b": ["1", "2"]})
    with pytest.raises(HfHubHTTPError, match="table: fields of unequal length"):
        hub(served, "rows").tabular_classification({"a": ["1", "2"], "b": ["1"]})
    with pytest.raises(HfHubHTTPError, match=r"parameters\.function_to_apply.*softmax"):
        hub(served, "reviews").text_classification("a day", function_to_apply="sigmoid")
    with pytest.raises(HfHubHTTPError, match=r"parameters\.top_k"):
        hub(served, "reviews").text_classification("a day", top_k=0)


def test_a_method_of_another_task_is_told_what_the_model_reads(served: Served) -> None:
    with pytest.raises(HfHubHTTPError, match=r"inputs\.0: not a row, found .*a day"):
        hub(served, "rows").text_classification("a day")
    with pytest.raises(HfHubHTTPError, match=r"table\.length\.0: "):
        hub(served, "reviews").tabular_classification({"length": ["1"]})


# What the client does not send


def test_a_list_of_inputs_gets_a_list_of_answers(served: Served) -> None:
    def ask(model: str, inputs: Any) -> Any:
        return served.post(f"/hf/models/{model}", json={"inputs": inputs}).json()

    images = [encoded(picture(colour)) for colour in ("red", "blue")]
    for model, inputs in (
        ("reviews", ["a lovely day", "a weird day"]),
        ("pictures", images),
        ("rows", [row(1), row(2)]),
    ):
        answers = ask(model, inputs)
        assert len(answers) == 2
        for value, answer in zip(inputs, answers, strict=True):
            alone = ask(model, value)
            expected = alone if model == "pictures" else alone[0]
            assert [found["label"] for found in answer] == [found["label"] for found in expected]
            scores = [found["score"] for found in expected]
            assert [found["score"] for found in answer] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b"{", ["body"]),
        (b"[]", ["body"]),
        (b"{}", ["body"]),
        (b'{"inputs": null}', ["body"]),
        (b'{"inputs": {}, "table": {}}', ["body"]),
        (b'{"inputs": []}', ["inputs"]),
        (b'{"inputs": [%s]}' % b",".join([b"{}"] * 1_001), ["inputs"]),
        (b'{"table": {}}', ["table"]),
        (b'{"table": {"a": []}}', ["table"]),
        (b'{"table": {"a": 1}}', ["table", "a"]),
        (b'{"table": {"c": [1]}}', ["table", "c", 0]),
        (b'{"table": {"a": [1]}, "parameters": {"top_k": 1}}', ["parameters", "top_k"]),
        (b'{"inputs": {}, "parameters": {"top_k": true}}', ["parameters", "top_k"]),
        (b'{"inputs": {}, "parameters": {"seed": 1}}', ["parameters", "seed"]),
        (b'{"inputs": {"c": 1}}', ["inputs", 0, "c"]),
        (b'{"inputs": {}, "options": {}}', ["options"]),
    ],
)
def test_a_body_of_the_wrong_shape_names_the_place(
    served: Served, body: bytes, loc: list[Any]
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = served.post("/hf/models/rows", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["loc"] == loc, answer.text
    assert answer.json()["error"] == answer.json()["detail"]


def test_other_content_types_are_refused(served: Served) -> None:
    for model, kind in (("rows", "image/png"), ("pictures", "text/plain"), ("rows", "text/csv")):
        headers = {"Content-Type": kind}
        answer = served.post(f"/hf/models/{model}", content=b"a", headers=headers)
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]


def test_problems_of_native_routes_are_as_the_standard_has_them(served: Served) -> None:
    answer = served.post("/v1/models/nothing/predict", json={"inputs": [{}]})
    assert answer.status_code == 404
    assert "error" not in answer.json()


def test_a_task_whose_predictions_have_no_shape_says_so(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(sqlite_database)
    world.publish("rows")
    monkeypatch.delitem(huggingface.SHAPES, LabelPrediction)
    with client(world, tmp_path) as api:
        answer = api.post("/hf/models/rows", json={"inputs": row(1)})
    assert answer.status_code == 404
    assert "tabular-classification" in answer.json()["error"]


def test_the_client_reads_a_text_at_once_and_as_it_is_written(served: Served) -> None:
    asking = InferenceClient(model=url_of(served, "tales"), token=served.key)
    how: dict[str, Any] = {"max_new_tokens": 30, "seed": 5, "top_p": 0.9}
    whole = asking.text_generation("All cats", **how)
    own = {"inputs": [{"prompt": "All cats"}], "parameters": how}
    answer = served.post("/v1/models/tales/predict", json=own)
    assert whole == answer.json()["predictions"][0]["text"]
    assert "".join(asking.text_generation("All cats", stream=True, **how)) == whole
    told = asking.text_generation("All cats", details=True, **how)
    assert told.generated_text == whole
    assert told.details is not None
    assert told.details.generated_tokens <= 30
    *_, last = asking.text_generation("All cats", details=True, stream=True, **how)
    assert last.generated_text == whole
    assert last.details is not None
    assert last.details.input_length > 0
    with pytest.raises(HfHubHTTPError, match="max_new_tokens"):
        asking.text_generation("All cats", max_new_tokens=-1)


def test_what_is_not_written_cannot_be_sent_as_it_is_written(served: Served) -> None:
    answer = served.post("/hf/models/reviews", json={"inputs": "good", "stream": True})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["stream"]
