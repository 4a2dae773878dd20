"""How tasks on texts show them to published networks."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from models.base import PADDING, SENTENCE_END, UNKNOWN
from models.parts.published import Published
from models.parts.retrieval import Retriever
from models.parts.training import Training
from models.pretrained_text import PretrainedText
from models.transformer import Transformer
from tasks import catalog
from tasks.base import Facts, Task
from tasks.coreference import Coreference
from tasks.parts.problems import Invalid
from tasks.parts.reading import Reading
from tasks.parts.vocabulary import BytePairs, PublishedTokens, Vocabulary
from tasks.search import Search
from tasks.text_classification import TextClassification
from tasks.text_generation import TextGeneration
from tasks.text_pair_classification import TextPairClassification
from tasks.text_to_text import TextToText
from tasks.token_classification import TokenClassification
from tests.published_texts import text_checkpoint
from tests.toys import toy

LENGTHS = {"median": 50, "p98": 5_000, "most": 90_000}
FACTS = Facts(
    {
        "characters": LENGTHS,
        "words": LENGTHS,
        "bytes": 300,
        "spans": True,
        "tags": ["O"],
        "singletons": True,
        "mention_words": LENGTHS,
        "source": {"characters": LENGTHS, "words": LENGTHS},
        "target": {"characters": LENGTHS, "words": LENGTHS},
    },
    {"train": 100},
)
READING: list[type[Task]] = [
    Coreference,
    Search,
    TextClassification,
    TextPairClassification,
    TokenClassification,
]


@pytest.fixture(scope="module", params=["bert", "roberta", "deberta-v2", "gpt2", "llama"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder: Path = tmp_path_factory.mktemp("published")
    text_checkpoint(folder, request.param)
    return Published(folder)


def known(found: Published) -> PretrainedText:
    return PretrainedText().grounded(found)


def vocabulary(found: Published, task: type[Task] = TextClassification) -> Vocabulary:
    resolved = task(architecture=known(found)).resolve(FACTS)
    reading = resolved.reading(found)
    assert isinstance(reading, Reading)
    return reading.vocabulary


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("task", READING)
def test_the_checkpoint_decides_on_tokens_and_how_many_are_read(
    task: type[Task], kind: str, tmp_path: Path
) -> None:
    text_checkpoint(tmp_path, kind)
    architecture = known(Published(tmp_path))
    resolved: Any = task(architecture=architecture).resolve(FACTS)
    assert resolved.tokenizer == PublishedTokens()
    assert resolved.max_length == architecture.most
    assert resolved.architecture.pooling != "auto"
    assert task(architecture=architecture, max_length=9).resolve(FACTS).max_length == 9
    with pytest.raises(Invalid, match="reads no texts as long"):
        task(architecture=architecture, max_length=129).resolve(FACTS)
    with pytest.raises(Invalid, match="brings its own"):
        task(architecture=architecture, tokenizer=BytePairs()).resolve(FACTS)
    assert resolved.resolve(FACTS) == resolved


@pytest.mark.parametrize("task", [TextClassification, TokenClassification, TextToText])
def test_a_network_that_begins_with_nothing_has_no_published_tokens(task: type[Task]) -> None:
    with pytest.raises(Invalid, match="only an architecture that is pretrained"):
        task(tokenizer=PublishedTokens()).resolve(FACTS)


def test_only_decoders_write(found: Published) -> None:
    task = TextGeneration(architecture=known(found))
    if not known(found).goes_on:
        with pytest.raises(Invalid, match="writes no texts"):
            task.resolve(FACTS)
        return
    resolved = task.resolve(FACTS)
    assert resolved.max_length == 77
    assert isinstance(resolved.architecture, PretrainedText)
    assert resolved.architecture.causal
    assert resolved.defaults(FACTS) == {"batch_size": 8}
    whole: Any = TextClassification(architecture=resolved.architecture).resolve(FACTS)
    assert not whole.architecture.causal
    assert not resolved.architecture.grounded(found).causal


def test_what_is_written_is_what_was_read_behind_other_text(found: Published) -> None:
    words = vocabulary(found)
    if not known(found).goes_on:
        return
    for text in (" wonderful films, 12 ☃ times\n\n!", " 내일 서울에", "ing"):
        begun, whole = words.whole(["a", f"a{text}"])
        shared = sum(ours == theirs for ours, theirs in zip(begun, whole, strict=False))
        assert words.text(begun[:shared] + whole[shared:]).lstrip() == f"a{text}"
        if whole[: len(begun)] == begun:
            assert words.text(whole[len(begun) :]) == text
    assert words.text([SENTENCE_END, PADDING]) == ""


def test_words_have_the_tokens_that_they_have_within_a_text(found: Published) -> None:
    words = vocabulary(found, TokenClassification)
    sentence = ["the", "wonderful", "cat", "sleeps"]
    table = words.encode_words(sentence)
    (text,) = words.whole([" ".join(sentence)])
    each = [table.values[a:b].tolist() for a, b in table.offsets.unfold(0, 2, 1).tolist()]
    assert text[len(text) - sum(map(len, each[1:])) :] == [*chain.from_iterable(each[1:])]
    empty = words.encode_words([""]).values.tolist()
    assert len(empty) >= 1


def test_marks_that_people_write_are_text_and_what_is_unknown_has_our_id(found: Published) -> None:
    words, architecture = vocabulary(found), known(found)
    assert architecture.reads is not None
    marks = {architecture.reads.begin + 3, architecture.reads.end + 3}
    kind = architecture.config and architecture.config["model_type"]
    for text in ("[SEP] [CLS]", "</s> <s>"):
        (ids,) = words.ids([text])
        assert ids
        assert not marks & set(ids)
        assert max(ids) < words.size
    if kind in ("bert", "deberta-v2"):
        assert UNKNOWN in next(words.ids(["☃"]))


def test_a_vocabulary_comes_back_from_json_and_reads_alike(found: Published) -> None:
    words = vocabulary(found)
    again = Vocabulary.model_validate_json(words.model_dump_json())
    assert again == words
    texts = ["What a film.", "내일 서울에"]
    assert list(again.ids(texts)) == list(words.ids(texts))
    assert list(words.ids(texts)) == list(words.whole(texts))


def test_a_search_from_scratch_keeps_the_embeddings_of_its_network(
    found: Published, tmp_path: Path
) -> None:
    if known(found).goes_on:
        return
    checked = Search.check(toy("search", tmp_path), Search.options_type())
    facts = Facts(checked.schema, {name: frame.height for name, frame in checked.splits.items()})
    spec = catalog.resolve("search", facts, Search(architecture=known(found)), Training(), None)
    task = spec.task
    assert isinstance(task, Search)
    codec = task.learn_codec(checked.splits["train"].lazy(), checked.schema, task.reading(found))
    learner = task.build(codec)
    assert isinstance(learner, Retriever)
    before = {name: weight.clone() for name, weight in learner.backbone.state_dict().items()}
    learner.start(spec.training, None, 10)
    after = learner.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pairs_are_aligned_by_the_network_itself(found: Published) -> None:
    task = TextPairClassification(architecture=known(found))
    assert task.resolve(FACTS).alignment is False
    with pytest.raises(Invalid, match="aligns texts by itself"):
        task.model_copy(update={"alignment": True}).resolve(FACTS)
    own = TextPairClassification(architecture=Transformer()).resolve(FACTS)
    assert own.tokenizer == BytePairs()
