"""Embeddings by every door: the native route, OpenAI's own client and Hugging Face's, beside the model itself."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import openai
import pytest
import torch
from huggingface_hub import InferenceClient, constants
from huggingface_hub.utils import close_session

from models.base import Supervised
from tasks import catalog
from tasks.trained import Trained
from tests import processes
from tests.api.serving_world import Example, World, image_example, picture, train, untrained
from tests.conftest import opened

TEXTS = ["wings in supersonic flow", "", "날개", "a tail " * 500]


class Served(NamedTuple):
    """A served API with some models, and these themselves."""

    url: str
    key: str
    models: dict[str, Example]

    def embed(self, ref: str, **sent: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.key}", **sent.pop("headers", {})}
        url = f"{self.url}/v1/models/{ref}/embed"
        return httpx2.post(url, headers=headers, timeout=60, **sent)

    def vectors(self, ref: str, *inputs: Any) -> torch.Tensor:
        answer = self.embed(ref, json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        return torch.tensor(answer.json()["embeddings"])


@pytest.fixture(scope="module")
def served(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("embeddings")
    url = f"sqlite:///{shutil.copy(_sqlite_template, folder / 'store.sqlite')}"
    models = {
        "manuals": untrained("search"),
        "reviews": untrained("text-classification"),
        "claims": untrained("text-pair-classification"),
        "pictures": image_example(),
        "rows": train(),
        "tales": untrained("text-generation"),
    }
    with opened(url) as database:
        world = World(database)
        for name, example in models.items():
            world.publish(name, example)
        with processes.api(folder, url) as service:
            yield Served(service.url, service.key, models)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client sends no request where it is told to be offline; its hub is nowhere."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    yield
    close_session()


def seen(trained: Trained, value: Any) -> torch.Tensor:
    """What the network makes of an input by itself."""
    learner, codec = trained.learner, trained.codec
    assert isinstance(learner, Supervised)
    learner.eval()
    batch = codec.encode_inputs(codec.read_inputs([value])).batch(torch.tensor([0]))
    with torch.inference_mode():
        return learner.features_of(*batch.inputs)[0]


INPUTS: dict[str, list[Any]] = {
    "manuals": [{"query": text} for text in TEXTS],
    "reviews": [{"text": text} for text in TEXTS],
    "claims": [{"text_a": text, "text_b": "a cat"} for text in TEXTS],
    "rows": [{"a": 0.5, "b": n, "kind": "x"} for n in range(3)],
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_embedding_is_what_the_network_makes_of_an_input_whoever_is_beside_it(
    served: Served, name: str
) -> None:
    found = served.vectors(name, *INPUTS[name])
    own = torch.stack([seen(served.models[name].trained, value) for value in INPUTS[name]])
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-4)
    assert len(set(map(tuple, found.tolist()))) == len(found)


def test_what_a_head_makes_of_an_embedding_is_the_prediction(served: Served) -> None:
    trained = served.models["reviews"].trained
    vectors = served.vectors("reviews", *INPUTS["reviews"])
    assert isinstance(trained.learner, Supervised)
    with torch.inference_mode():
        scores = trained.learner.head(vectors)
    predicted = trained.predict(trained.codec.read_inputs(INPUTS["reviews"]))
    for row, prediction in zip(scores.softmax(1).tolist(), predicted, strict=True):
        assert row == pytest.approx([*prediction.scores.values()], abs=1e-5)


def test_queries_of_a_search_lie_where_documents_do(served: Served) -> None:
    lengths = served.vectors("manuals", *INPUTS["manuals"]).norm(dim=1)
    told = torch.tensor([float(bool(text)) for text in TEXTS])  # nothing is like an empty text
    torch.testing.assert_close(lengths, told)


def test_an_image_is_sent_as_it_is(served: Served) -> None:
    image = picture("maroon")
    raw = served.embed("pictures", content=image, headers={"Content-Type": "image/png"})
    encoded = {"image": base64.b64encode(image).decode()}
    assert torch.equal(torch.tensor(raw.json()["embeddings"]), served.vectors("pictures", encoded))


def test_what_cannot_be_embedded_is_refused_in_words(served: Served) -> None:
    none = served.embed("tales", json={"inputs": [{"prompt": "a"}]})
    assert (none.status_code, "embeddings" in none.json()["detail"]) == (404, True)
    bad = served.embed("reviews", json={"inputs": [{"text": "a"}, {"text": 1}]})
    assert (bad.status_code, bad.json()["errors"][0]["loc"]) == (422, ["inputs", 1, "text"])
    more = served.embed("reviews", json={"inputs": [{"text": "a"}], "parameters": {"top_k": 1}})
    assert (more.status_code, more.json()["errors"][0]["loc"]) == (422, ["parameters"])


# OpenAI


@pytest.fixture
def asking(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{served.url}/openai/v1", api_key=served.key, max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize(("name", "field"), [("manuals", "query"), ("reviews", "text")])
def test_openais_client_gets_the_same_vectors_in_either_format(
    served: Served, asking: openai.OpenAI, name: str, field: str
) -> None:
    own = served.vectors(name, *({field: text} for text in TEXTS))
    for format in ({}, {"encoding_format": "float"}):
        found = asking.embeddings.create(model=name, input=TEXTS, **format)  # type: ignore[arg-type]
        assert [each.index for each in found.data] == [0, 1, 2, 3]
        assert torch.equal(torch.tensor([each.embedding for each in found.data]), own)
    assert found.model == f"{name}@1"
    assert found.usage.prompt_tokens == found.usage.total_tokens > 4
    (alone,) = asking.embeddings.create(model=name, input=TEXTS[0]).data
    assert alone.embedding == pytest.approx(own[0].tolist(), abs=1e-5)


def test_openais_client_is_told_what_is_wrong(asking: openai.OpenAI) -> None:
    for name in ("rows", "claims", "tales"):
        with pytest.raises(openai.NotFoundError, match="embeddings of texts"):
            asking.embeddings.create(model=name, input="a")
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
        asking.embeddings.create(model="manuals", input="a", dimensions=2)
    with pytest.raises(openai.UnprocessableEntityError, match="input"):
        asking.embeddings.create(model="manuals", input=[[1, 2]])
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\.1"):
        asking.embeddings.create(model="manuals", input=["a", 5])


# Hugging Face


def hub(served: Served, model: str, task: str) -> InferenceClient:
    return InferenceClient(f"{served.url}/hf/models/{model}/{task}", token=served.key)


def test_hugging_faces_client_extracts_the_same_features(served: Served) -> None:
    client = hub(served, "reviews", "feature-extraction")
    own = served.vectors("reviews", {"text": TEXTS[0]})[0].numpy()
    found = client.feature_extraction(TEXTS[0])
    np.testing.assert_allclose(found, own, atol=1e-6)
    scaled = client.feature_extraction(TEXTS[0], normalize=True, truncate=True)
    np.testing.assert_allclose(scaled, own / np.linalg.norm(own), atol=1e-6)


def test_hugging_faces_client_compares_texts(served: Served) -> None:
    client = hub(served, "manuals", "sentence-similarity")
    found = client.sentence_similarity(TEXTS[0], other_sentences=[TEXTS[0], *TEXTS[2:]])
    own = served.vectors("manuals", *({"query": t} for t in (TEXTS[0], TEXTS[0], *TEXTS[2:])))
    assert found == pytest.approx((own[1:] @ own[0]).tolist(), abs=1e-5)
    assert found[0] == pytest.approx(1, abs=1e-5)


def test_every_task_that_embeds_gives_one_vector_for_an_example() -> None:
    embedding = {name for name, task in catalog.tasks().items() if task.embeds}
    assert {name for name, task in catalog.tasks().items() if task.advised} <= embedding
    for name in sorted(embedding):
        trained = untrained(name).trained
        blank = trained.codec.blank()
        assert trained.embeds, name
        if blank is not None:
            (vector,) = trained.embed(trained.codec.read_inputs([blank]))
            assert vector.dim() == 1
            assert bool(vector.isfinite().all())
