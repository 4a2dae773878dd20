"""How tasks that write texts show them to published networks, and what these are asked to write."""

from pathlib import Path

import polars as pl
import pytest
import torch

from models.base import SENTENCE_END
from models.parts.published import Published
from models.pretrained_writer import PretrainedWriter
from models.transformer_to_transformer import TransformerToTransformer
from tasks.base import Facts
from tasks.morphological_segmentation import MorphologicalSegmentation
from tasks.parts.problems import Invalid
from tasks.parts.vocabulary import BytePairs, PublishedTokens
from tasks.parts.writing import WritingTask
from tasks.text_to_text import TextToText, TextToTextCodec
from tests.published_writers import writer_checkpoint

LENGTHS = {"median": 50, "p98": 5_000, "most": 5_000}
TARGET = {"characters": LENGTHS, "words": LENGTHS}
FACTS = Facts({**TARGET, "target": TARGET}, {"train": 100})
writing = pytest.mark.parametrize("task", [TextToText, MorphologicalSegmentation])


@pytest.fixture(scope="module", params=["bart", "t5"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder: Path = tmp_path_factory.mktemp("published")
    writer_checkpoint(folder, request.param)
    return Published(folder)


@writing
def test_the_checkpoint_decides_on_tokens_and_how_many_are_read_and_written(
    task: type[WritingTask], found: Published
) -> None:
    known = PretrainedWriter().grounded(found)
    resolved = task(architecture=known).resolve(FACTS)
    assert resolved.tokenizer == PublishedTokens()
    bounded = found.config["model_type"] == "bart"
    assert resolved.max_length == (62 if bounded else 512)
    assert resolved.max_target_length == (63 if bounded else 513)
    assert resolved.resolve(FACTS) == resolved
    with pytest.raises(Invalid, match="brings its own"):
        task(architecture=known, tokenizer=BytePairs()).resolve(FACTS)
    if bounded:
        with pytest.raises(Invalid, match="writes no texts as long"):
            task(architecture=known, max_target_length=64).resolve(FACTS)


@writing
def test_tokens_are_copied_by_networks_that_begin_with_nothing_unless_asked_otherwise(
    task: type[WritingTask], found: Published
) -> None:
    known, own = PretrainedWriter().grounded(found), TransformerToTransformer()
    assert task(architecture=own).resolve(FACTS).copying is True
    assert task(architecture=known).resolve(FACTS).copying is False
    assert task(architecture=known, copying=True).resolve(FACTS).copying is True
    assert task(architecture=own, copying=False).resolve(FACTS).copying is False


def test_a_model_that_copies_nothing_can_be_a_base_without_saying_so() -> None:
    base = TextToText(architecture=TransformerToTransformer(), copying=False).resolve(FACTS)
    assert TextToText().on_base(base).copying is False
    with pytest.raises(Invalid, match="a base brings its own"):
        TextToText(copying=True).on_base(base)


def codec_of(found: Published, pairs: list[tuple[str, str]]) -> TextToTextCodec:
    task = TextToText(architecture=PretrainedWriter().grounded(found)).resolve(FACTS)
    frame = pl.DataFrame({"source": [a for a, _ in pairs], "targets": [[b] for _, b in pairs]})
    return task.learn_codec(frame.lazy(), {}, task.reading(found))


def test_answers_are_the_texts_that_were_learned(found: Published) -> None:
    codec = codec_of(found, [("the cat sings.", "What a wonderful film, 12 times!")] * 9)
    column = codec.encode_targets(["the cat sings.", "What a wonderful film, 12 times!"])
    for number, text in enumerate(["the cat sings.", "What a wonderful film, 12 times!"]):
        ids = column.values[column.offsets[number] : column.offsets[number + 1] - 1]
        (written, _) = codec.written(torch.tensor([[0.5, *ids.tolist(), 0, 0]]))[0]
        assert written == text


def test_targets_are_cut_into_the_pieces_of_their_language(tmp_path: Path) -> None:
    writer_checkpoint(tmp_path, "marian")
    text = "What a wonderful film that was!"  # which is of the language of sources
    codec = codec_of(Published(tmp_path), [(text, text)] * 9)
    assert codec.written_vocabulary is not None
    assert codec.written_vocabulary != codec.vocabulary
    (as_source,), (as_target,) = (v.whole([text]) for v in (codec.vocabulary, codec.of_targets))
    ended = codec.encode_targets([text]).values.tolist()
    assert ended == [*as_target, SENTENCE_END][: codec.longest]
    assert len(as_source) < len(as_target)
    again = TextToTextCodec.model_validate_json(codec.model_dump_json())
    assert again == codec
