"""OpenAI's own client against a served API: completions at once and as they are written, and errors in words."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pydantic_core
import pytest

from tests import processes
from tests.api.serving_world import World, untrained
from tests.conftest import opened


@pytest.fixture(scope="module")
def asking(
    _sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """The client of a served API with a model that writes, and one that does not."""
    folder = tmp_path_factory.mktemp("openai")
    url = f"sqlite:///{shutil.copy(_sqlite_template, folder / 'store.sqlite')}"
    with opened(url) as database:
        world = World(database)
        world.publish("tales", untrained("text-generation"))
        world.publish("rows")
        with (
            processes.api(folder, url) as service,
            openai.OpenAI(
                base_url=f"{service.url}/openai/v1", api_key=service.key, max_retries=0
            ) as client,
        ):
            yield client


def predict(asking: openai.OpenAI, ref: str, body: Any, **headers: str) -> httpx2.Response:
    url = str(asking.base_url).replace("/openai/v1/", f"/v1/models/{ref}/predict")
    headers = {"Authorization": f"Bearer {asking.api_key}", **headers}
    return httpx2.post(url, json=body, headers=headers, timeout=60)


HOW: dict[str, Any] = {"max_tokens": 20, "seed": 5, "top_p": 0.9}


def test_a_completion_is_what_the_model_predicts(asking: openai.OpenAI) -> None:
    found = asking.completions.create(model="tales", prompt=["All cats", "All"], **HOW)
    inputs = [{"prompt": "All cats"}, {"prompt": "All"}]
    parameters = {"max_new_tokens": 20, "seed": 5, "top_p": 0.9}
    own = predict(asking, "tales", {"inputs": inputs, "parameters": parameters}).json()
    assert [choice.text for choice in found.choices] == [p["text"] for p in own["predictions"]]
    assert found.model == own["model"] == "tales@1"
    assert found.usage is not None
    assert found.usage.completion_tokens == sum(p["tokens"] for p in own["predictions"])
    assert found.usage.prompt_tokens == sum(p["prompt_tokens"] for p in own["predictions"])


def test_a_stream_brings_the_same_text_and_at_last_its_usage(asking: openai.OpenAI) -> None:
    whole = asking.completions.create(model="tales", prompt="All cats", **HOW)
    events = [
        *asking.completions.create(
            model="tales",
            prompt="All cats",
            stream=True,
            stream_options={"include_usage": True},
            **HOW,
        )
    ]
    texts = [choice.text for event in events for choice in event.choices]
    assert "".join(texts) == whole.choices[0].text
    assert events[-1].usage == whole.usage
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_models_are_listed(asking: openai.OpenAI) -> None:
    assert {model.id for model in asking.models.list()} == {"tales", "rows"}


def test_errors_say_what_is_wrong(asking: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such"):
        asking.completions.create(model="no-such", prompt="a")
    with pytest.raises(openai.NotFoundError, match="text-generation"):
        asking.completions.create(model="rows", prompt="a")
    with pytest.raises(openai.UnprocessableEntityError, match="best_of"):
        asking.completions.create(model="tales", prompt="a", best_of=2)
    with pytest.raises(openai.AuthenticationError):
        asking.with_options(api_key="my_nothing").completions.create(model="tales", prompt="a")


def test_predictions_come_as_events_when_asked_for(asking: openai.OpenAI) -> None:
    body = {"inputs": [{"prompt": "All", "seed": 1, "max_new_tokens": 12, "top_k": 50}]}
    (whole,) = predict(asking, "tales", body).json()["predictions"]
    answer = predict(asking, "tales", body, Accept="text/event-stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.splitlines() for event in answer.text.strip().split("\n\n")]
    told = [(kind.removeprefix("event: "), data.removeprefix("data: ")) for kind, data in events]
    texts = [pydantic_core.from_json(data)["text"] for kind, data in told if kind == "text"]
    assert "".join(texts) == whole["text"]
    kind, data = told[-1]
    assert kind == "end"
    assert pydantic_core.from_json(data) == {
        "model": "tales@1",
        "finish_reason": whole["finish_reason"],
        "tokens": whole["tokens"],
    }


def test_what_cannot_come_as_events_is_refused(asking: openai.OpenAI) -> None:
    events = {"Accept": "text/event-stream"}
    two = predict(asking, "tales", {"inputs": [{"prompt": "a"}] * 2}, **events)
    assert (two.status_code, two.json()["errors"][0]["loc"]) == (422, ["inputs"])
    rows = predict(asking, "rows", {"inputs": [{"a": 1}]}, **events)
    assert (rows.status_code, rows.json()["errors"][0]["loc"]) == (422, ["header", "Accept"])
