"""From archives of recordings to a trained recogniser, and what is made of its answers."""

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch

from models.gru import GRU
from models.parts.options import AUTO
from models.parts.training import Training, Transfer
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.parts.ngrams import BEGIN, END, NoLanguageModel, automaton, count_ngrams
from tasks.parts.problems import Invalid
from tasks.parts.sound_augmentation import SoundAugmentation
from tasks.parts.splits import SplitOptions
from tasks.speech_recognition import (
    RecognitionParameters,
    SpeechCodec,
    SpeechPrediction,
    SpeechRecognition,
    Word,
    cleaned,
)
from tasks.trained import Trained

TINY = GRU(embedding=8, width=8, dropout=0)
STILL = SoundAugmentation()


def hum(number: int = 0, seconds: float = 0.5, rate: int = 8_000, format: str = "WAV") -> bytes:
    draw = np.random.default_rng(number)
    wave = 0.3 * np.sin(np.arange(int(seconds * rate)) / (3 + number % 5))
    file = io.BytesIO()
    soundfile.write(file, wave + draw.normal(0, 0.01, len(wave)), rate, format=format)
    return file.getvalue()


def sounds(count: int = 10, folder: str = "audio/", first: int = 0) -> dict[str, bytes]:
    return {f"{folder}{n}.wav": hum(n) for n in range(first, first + count)}


def lines(names: list[str], text: str = "one two", **more: Any) -> bytes:
    return "\n".join(json.dumps({"audio": n, "text": text, **more}) for n in names).encode()


def archive(members: dict[str, bytes], folder: Path, name: str = "sounds.zip") -> Upload:
    path = folder / name
    with zipfile.ZipFile(path, "w") as file:
        for member, data in members.items():
            file.writestr(member, data)
    return Upload(path, name)


def checked(members: dict[str, bytes], folder: Path, **options: Any) -> Checked:
    return SpeechRecognition.check({"file": archive(members, folder)}, DatasetOptions(**options))


def whole(count: int = 10) -> dict[str, bytes]:
    members = sounds(count)
    return members | {"manifest.jsonl": lines(list(members))}


def problems_of(members: dict[str, bytes], folder: Path, **options: Any) -> list[Any]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder, **options)
    return list(caught.value.problems)


def task_for(data: Checked, **fields: Any) -> SpeechRecognition:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    return SpeechRecognition.model_validate({"architecture": TINY, **fields}).resolve(facts)


def codec_for(data: Checked, base: Any = None, **fields: Any) -> SpeechCodec:
    task = task_for(data, **fields)
    return task.learn_codec(data.splits["train"].lazy(), data.schema, base)


# Layouts


def csv(names: list[str], mark: str = ",", head: str = "path{}sentence{}client_id") -> bytes:
    rows = [head.format(mark, mark), *(f"{n}{mark}hello there{mark}ann" for n in names)]
    return "\n".join(rows).encode()


LAYOUTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "JSON Lines, paths from the top": whole,
    "CSV beside its sounds": lambda: (
        sounds(10, "x/") | {"x/metadata.csv": csv([f"{n}.wav" for n in range(10)])}
    ),
    "Common Voice, names without folders": lambda: (
        sounds(10, "cv/clips/") | {"cv/validated.tsv": csv([f"{n}.wav" for n in range(10)], "\t")}
    ),
    "paths of another machine": lambda: (
        sounds(10) | {"list.jsonl": lines([f"/data/me/{n}.wav" for n in range(10)])}
    ),
    "names without endings": lambda: (
        sounds(10) | {"list.jsonl": lines([f"audio/{n}" for n in range(10)])}
    ),
    "LibriSpeech": lambda: (
        sounds(10, "84/121/84-121-")
        | {"84/121/84-121.trans.txt": b"\n".join(b"84-121-%d GO ON" % n for n in range(10))}
    ),
    "a text beside each sound": lambda: (
        sounds(10, "a/")
        | {f"a/{n}.txt": b"well\nwell" for n in range(10)}
        | {"a/README.txt": b"about this"}
    ),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_layout_is_understood(layout: str, tmp_path: Path) -> None:
    members = LAYOUTS[layout]()
    data = checked(members, tmp_path)
    assert data.report["examples"] == {"train": 8, "validation": 2}
    frame = pl.concat(data.splits.values())
    assert frame.columns == ["audio", "text", "speaker", "name", "seconds"]
    assert dict(frame.select("name", "audio").iter_rows()) == {
        name: data for name, data in members.items() if name.endswith(".wav")
    }
    (text,) = frame["text"].unique()
    assert text in ("one two", "hello there", "GO ON", "well well")
    assert data.report["unused"] == {"count": 0, "first": []}


@pytest.mark.parametrize(
    "manifests",
    [
        ("train.jsonl", "valid.jsonl", "test.jsonl"),
        ("train/metadata.jsonl", "validation/metadata.jsonl", "test/metadata.jsonl"),
        ("cv/train.jsonl", "cv/dev.jsonl", "cv/test.jsonl"),
    ],
)
def test_manifests_of_splits_split_the_examples(manifests: tuple[str, ...], tmp_path: Path) -> None:
    places = [["audio/0.wav", "audio/1.wav", "audio/2.wav"], ["audio/3.wav"], ["audio/4.wav"]]
    told = {name: lines(some) for name, some in zip(manifests, places, strict=True)}
    data = checked(sounds(5) | told | {"validated.jsonl": b"no manifest of a split"}, tmp_path)
    assert {name: frame["name"].to_list() for name, frame in data.splits.items()} == dict(
        zip(("train", "validation", "test"), places, strict=True)
    )


def test_folders_of_splits_split_texts_and_transcripts(tmp_path: Path) -> None:
    members = {
        **sounds(4, "train-clean/1/1-"),
        "train-clean/1/1.trans.txt": b"1-0 A\n1-1 B\n1-2 C\n1-3 D",
        **sounds(2, "dev-clean/2/2-", 7),
        "dev-clean/2/2.trans.txt": b"2-7 E\n2-8 F",
    }
    assert checked(members, tmp_path).report["examples"] == {"train": 4, "validation": 2}
    beside = {f"{n[:-4]}.txt": b"x" for n in sounds(3, "train/")} | sounds(3, "train/")
    beside |= {"test/9.wav": hum(9), "test/9.txt": b"y"}
    found = checked(beside, tmp_path).report["examples"]
    assert found == {"train": 2, "validation": 1, "test": 1}


def test_a_column_may_tell_the_split(tmp_path: Path) -> None:
    rows = [
        {"audio": f"audio/{n}.wav", "text": "a", "part": "test" if n > 7 else "train"}
        for n in range(10)
    ]
    told = {"list.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    data = checked(sounds() | told, tmp_path, split=SplitOptions(by="part"))
    assert data.report["examples"]["test"] == 2


def test_an_archive_per_split_is_read_and_its_sounds_compared(tmp_path: Path) -> None:
    other = {"b/0.wav": hum(0), "m.jsonl": lines(["b/0.wav"], speaker="eve")}
    files = {
        "train": archive(whole(), tmp_path, "a.zip"),
        "test": archive(other, tmp_path, "b.zip"),
    }
    report = SpeechRecognition.check(files, DatasetOptions()).report
    assert report["examples"] == {"train": 8, "validation": 2, "test": 1}
    assert report["overlap"]["train/test"] + report["overlap"]["validation/test"] == 1


def test_splits_within_one_split_are_refused(tmp_path: Path) -> None:
    members = sounds(4) | {
        "train.jsonl": lines(["audio/0.wav", "audio/1.wav"]),
        "test.jsonl": lines(["audio/2.wav", "audio/3.wav"]),
    }
    with pytest.raises(Invalid, match="is one split already"):
        SpeechRecognition.check({"train": archive(members, tmp_path)}, DatasetOptions())


def test_a_report_tells_what_was_heard(tmp_path: Path) -> None:
    members = sounds(8) | {"audio/8.flac": hum(8, 2.0, 16_000, "FLAC"), "audio/9.wav": hum(9)}
    told = [f"audio/{n}.wav" for n in range(8)]
    members |= {
        "train.jsonl": lines(told, "ab", speaker="ann"),
        "test.jsonl": lines(["audio/8.flac"], "abc", speaker="bob"),
    }
    report = checked(members, tmp_path).report
    assert report["seconds"]["test"] == 2.0
    assert report["longest"] == 2.0
    assert report["rate"] == {"8000": 8, "16000": 1}
    assert report["format"] == {"WAV": 8, "FLAC": 1}
    assert report["alphabet"] == "ab"
    assert report["unknown"] == {"validation": "", "test": "c"}
    assert report["speakers"]["validation"] == {"count": 1, "also_in_train": 1}
    assert report["speakers"]["test"] == {"count": 1, "also_in_train": 0}
    assert report["unused"] == {"count": 1, "first": ["audio/9.wav"]}
    json.dumps(report)


@pytest.mark.parametrize(
    ("members", "loc", "message"),
    [
        ({"m.jsonl": lines(["a.wav"])}, ("file",), "no sounds in the archive"),
        (sounds(2), ("file",), "nothing says what is said"),
        (
            whole() | {"manifest.jsonl": lines(["audio/0.wav", "audio/77.wav"])},
            ("file", "manifest.jsonl", "line", 2, "audio"),
            "no such sound",
        ),
        (
            whole() | {"manifest.jsonl": lines(["audio/0.wav"], " ")},
            ("file", "manifest.jsonl", "line", 1, "text"),
            "there is no text",
        ),
        (
            whole() | {"manifest.jsonl": lines(["audio/0.wav"], "a\ab")},
            ("file", "manifest.jsonl", "line", 1, "text"),
            "not a text of speech",
        ),
        (
            whole() | {"manifest.jsonl": b'{"audio": "audio/0.wav"}'},
            ("file", "manifest.jsonl", "text"),
            "the column is missing",
        ),
        (
            whole() | {"manifest.jsonl": b'{"audio": '},
            ("file", "manifest.jsonl", "line", 1),
            "not JSON",
        ),
        (
            whole() | {"audio/3.wav": b"hello"},
            ("file", "audio/3.wav"),
            "not a readable sound",
        ),
        (
            whole() | {"manifest.jsonl": lines(["audio/0.wav"], "much too much to be said")},
            ("file", "audio/0.wav", "text"),
            "too long for its sound",
        ),
        ({"../a.wav": hum()}, ("file", "../a.wav"), "unsafe name"),
    ],
)
def test_what_cannot_be_learned_is_named(
    members: dict[str, bytes], loc: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    problem = problems_of(members, tmp_path)[0]
    assert (problem.loc, problem.msg) == (loc, message)


def test_every_line_that_is_wrong_is_named(tmp_path: Path) -> None:
    told = lines([f"audio/{n}.wav" for n in range(5, 15)], "")
    found = problems_of(sounds() | {"m.jsonl": told}, tmp_path)
    assert len(found) == 5 + 10


def test_a_path_out_of_the_archive_finds_nothing(tmp_path: Path) -> None:
    told = {"manifest.jsonl": lines(["../../etc/passwd", "/etc/hostname"])}
    assert [p.msg for p in problems_of(sounds() | told, tmp_path)] == ["no such sound"] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"format": "csv"},
        {"format": "texts"},
        {"column_mapping": {"label": "y"}},
        {"column_mapping": {"text": "y"}},
        {"split": SplitOptions(by="nowhere")},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    assert problems_of(whole(), tmp_path, **options)[0].loc[0] in ("options", "file")


# What is left open, and what is learned besides weights


def test_what_is_open_follows_the_data(tmp_path: Path) -> None:
    task = task_for(checked(whole(), tmp_path), architecture="auto")
    assert (task.rate, task.max_seconds) == (8_000, 30)
    assert AUTO not in [value for _, value in task if isinstance(value, str)]
    facts = Facts({"rate": 44_100, "longest": 61.2, "seconds": 99_999.0}, {"train": 30_000})
    large = SpeechRecognition().resolve(facts)
    assert (large.rate, large.max_seconds) == (16_000, 62)
    assert large.architecture != task.architecture
    assert large.defaults(facts)["epochs"] < task.defaults(Facts({}, {"train": 100}))["epochs"]


def test_recordings_longer_than_asked_for_are_refused(tmp_path: Path) -> None:
    members = {"a.wav": hum(0, 1.5), "b.wav": hum(1), "m.jsonl": lines(["a.wav", "b.wav"], "x")}
    with pytest.raises(Invalid) as caught:
        codec_for(checked(members, tmp_path), max_seconds=1)
    assert caught.value.problems[0].loc == ("task", "max_seconds")


@pytest.mark.parametrize(
    ("text", "how", "found"),
    [
        ("Don’t  STOP – now!", {"lowercase": True, "punctuation": False}, "don't stop now"),
        ("'Well,' he said.", {"lowercase": False, "punctuation": False}, "Well he said"),
        ("Well, \u1112\u1161\u11ab", {"lowercase": False, "punctuation": True}, "Well, 한"),
    ],
)
def test_texts_are_learned_without_what_is_not_told_apart(
    text: str, how: dict[str, bool], found: str
) -> None:
    assert cleaned(text, **how) == found


def test_requests_are_encoded_as_the_data_set_is(tmp_path: Path) -> None:
    data = checked(whole(), tmp_path)
    codec = codec_for(data)
    examples = data.splits["validation"]
    values = [base64.b64encode(audio).decode() for audio in examples["audio"]]
    sent = codec.encode_inputs(codec.read_inputs(values)).batch(torch.arange(2))
    stored = codec.encode(examples, targets=False).batch(torch.arange(2))
    assert sent.inputs[0].shape == (2, 50, 80)
    assert all(torch.equal(a, b) for a, b in zip(sent.inputs, stored.inputs, strict=True))


def test_a_request_says_how_to_answer(tmp_path: Path) -> None:
    codec = codec_for(checked(whole(), tmp_path))
    text = base64.b64encode(hum()).decode()
    plain, asked = codec.read_inputs(
        [hum(), {"audio": text, "num_beams": 2, "language_model_weight": 0}]
    )
    assert plain.how == RecognitionParameters()
    how = codec.encode_inputs([plain, asked]).batch(torch.arange(2)).inputs[2]
    assert how.tolist() == [[8, 0.5, 0.5], [2, 0, 0]]


def test_every_bad_input_of_a_request_is_named(tmp_path: Path) -> None:
    codec = codec_for(checked(whole(), tmp_path))
    values = [
        hum(),
        "!",
        {"audio": base64.b64encode(b"text").decode()},
        {"audio": base64.b64encode(hum()).decode(), "num_beams": 0},
        hum(0, 31),
    ]
    with pytest.raises(Invalid) as caught:
        codec.read_inputs(values)
    assert [p.loc[:2] for p in caught.value.problems] == [("inputs", n) for n in (1, 2, 3, 4)]


def test_counts_of_ngrams_become_smoothed_probabilities() -> None:
    counts = count_ngrams(["ab", "ab", "aa"], 3)
    assert counts["ab"] == 2
    assert counts[BEGIN + "a"] == 3
    assert counts["b" + END] == 2
    after, logs = automaton(counts, "ab", 3)
    assert torch.allclose(logs.exp().sum(1), torch.ones(len(logs)))
    # Single characters: a 4, b 2, end 3 of 9, and a third of what three new ones of 12 leave.
    single = [(3 + 3 / 3) / 12, (4 + 3 / 3) / 12, (2 + 3 / 3) / 12]
    # At the beginning stands a three times of three, and one in four is left to what follows on less.
    start = [(0 + 1 * single[0]) / 4, (3 + 1 * single[1]) / 4, (0 + 1 * single[2]) / 4]
    assert logs[0].exp().tolist() == pytest.approx(start, abs=1e-5)
    in_a = logs[after[0, 1]].exp()
    assert in_a[2] > in_a[1] > 0
    # Only the last two characters count.
    said = [0]
    for column in (1, 2, 1, 2):
        said.append(int(after[said[-1], column]))
    assert said[2] == said[4] != said[1]


def test_a_language_model_may_be_left_out(tmp_path: Path) -> None:
    codec = codec_for(checked(whole(), tmp_path), language_model=NoLanguageModel())
    assert codec.ngrams == {}
    assert codec.grammar() is None


# Answers


def test_characters_become_words_with_their_times(tmp_path: Path) -> None:
    codec = codec_for(checked(whole(), tmp_path))  # " enotw"
    assert codec.alphabet == " enotw"
    ids = [5, 6, 4, 1, 1, 2, 0, 0]
    starts, ends = [4, 8, 12, 16, 20, 24, 0, 0], [8, 12, 16, 20, 24, 28, 0, 0]
    scores = [1.0, 0.5, 0.6, 0.1, 0.1, 0.25, 0, 0]
    (found,) = codec.decode(torch.tensor([[ids, starts, ends, scores]], dtype=torch.float32))
    assert found.text == "two e"
    assert [word.word for word in found.words] == ["two", "e"]
    assert (found.words[0].start, found.words[0].end) == (0.04, 0.16)
    assert found.words[0].score == pytest.approx(0.7)
    assert (found.words[1].start, found.words[1].end) == (0.24, 0.28)


def test_nothing_heard_is_an_empty_text(tmp_path: Path) -> None:
    (found,) = codec_for(checked(whole(), tmp_path)).decode(torch.zeros(1, 4, 3))
    assert found == SpeechPrediction(text="", words=[])


def said(text: str) -> SpeechPrediction:
    return SpeechPrediction(text=text, words=[Word(word="x", start=0, end=0, score=0)])


def test_error_rates_count_words_and_characters() -> None:
    examples = pl.DataFrame({"text": ["one two three", "four", "six"]})
    found = SpeechRecognition().score([said("one too"), said("four"), said("a six")], examples)
    assert found["wer"] == pytest.approx(3 / 5)  # one wrong, one missing, one too many
    assert found["cer"] == pytest.approx((1 + 6 + 2) / (13 + 4 + 3))
    assert found["exact_match"] == pytest.approx(1 / 3)


def test_scores_look_past_what_is_not_learned() -> None:
    task = SpeechRecognition(lowercase=True, punctuation=False)
    found = task.score([said("hello there")], pl.DataFrame({"text": ["Hello, there!"]}))
    assert found == {"wer": 0, "cer": 0, "exact_match": 1}


def test_an_evaluation_tells_what_was_confused_and_what_was_worst() -> None:
    examples = pl.DataFrame({"text": ["one two", "two", "six"]})
    found = SpeechRecognition().evaluate([said("one too"), said("too"), said("six")], examples)
    assert found["errors"] == {"substitutions": 2, "deletions": 0, "insertions": 0}
    assert found["confused"] == [{"said": "two", "written": "too", "count": 2}]
    assert [(row["row"], row["wer"]) for row in found["worst"]] == [(0, 0.5), (1, 1.0)]


def test_no_recording_with_a_text_has_no_rates() -> None:
    task = SpeechRecognition(punctuation=False)
    found = task.score([said("")], pl.DataFrame({"text": ["..."]}))
    assert np.isnan(found["wer"])


# Augmentation

LIVELY = SoundAugmentation(noise=0.5, speed=0.3, voice=0.2, time_masks=2, frequency_masks=2)


def test_no_variation_leaves_sounds_as_they_are() -> None:
    waves, lengths = torch.randn(2, 20, 80), torch.tensor([20, 9])
    assert STILL.disturb(waves, lengths) is waves
    spectra, same = STILL.move(waves, lengths, 8_000)
    assert spectra is waves
    assert same is lengths
    assert STILL.mask(waves, lengths) is waves


def test_speech_becomes_faster_or_slower_by_at_most_its_share() -> None:
    torch.manual_seed(0)
    lengths = torch.full((200,), 100)
    ramp = torch.arange(100.0).repeat(200, 1)[..., None].expand(-1, -1, 40)
    moved, found = SoundAugmentation(speed=0.25).move(ramp, lengths, 8_000)
    assert 78 <= int(found.min()) < 85
    assert 125 < int(found.max()) <= 134
    assert moved.shape[1] >= int(found.max())
    for row in range(0, 200, 40):
        along = moved[row, : found[row], 7]
        steps = along.diff()[:-2]
        assert torch.allclose(steps, torch.full_like(steps, 100 / float(found[row])), atol=0.02)


def test_voices_move_bands_and_not_time() -> None:
    torch.manual_seed(0)
    spectra = torch.zeros(100, 5, 40)
    spectra[:, :, 20] = 1
    moved, lengths = SoundAugmentation(voice=0.2).move(spectra, torch.full((100,), 5), 8_000)
    assert (lengths == 5).all()
    places = moved[:, 0].argmax(1)
    assert 15 <= int(places.min()) < 20 < int(places.max()) <= 25


def test_noise_is_no_louder_than_asked_for_and_ends_with_the_sound() -> None:
    torch.manual_seed(0)
    waves = torch.ones(50, 30, 80)
    waves[:, 20:] = 0
    noisy = SoundAugmentation(noise=0.5).disturb(waves, torch.full((50,), 20))
    loudness = (noisy - waves)[:, :20].square().mean((1, 2)).sqrt()
    assert 0.2 < float(loudness.max()) < 0.52
    assert float(loudness.min()) < 0.01
    assert not noisy[:, 20:].any()


def test_masks_are_stretches_of_time_and_of_bands() -> None:
    torch.manual_seed(0)
    ones = torch.ones(60, 100, 40)
    times = SoundAugmentation(time_masks=1, time_mask=0.2).mask(ones, torch.full((60,), 100))
    gone = 100 - times[..., 0].sum(1)
    assert 10 < int(gone.max()) <= 21
    bands = SoundAugmentation(frequency_masks=1, frequency_mask=0.5)
    gone = 40 - bands.mask(ones, torch.full((60,), 100))[:, 0].sum(1)
    assert 10 < int(gone.max()) <= 21


def test_sounds_vary_in_training_and_never_in_answers(tmp_path: Path) -> None:
    data = checked(whole(), tmp_path)
    codec = codec_for(data)
    learner = task_for(data, augmentation=LIVELY).build(codec)
    batch = codec.encode(data.splits["train"]).batch(torch.arange(4))
    learner.train()
    assert learner.loss(batch).item() != learner.loss(batch).item()
    learner.eval()
    assert learner.loss(batch).item() == learner.loss(batch).item()


# Transfer


def test_a_base_hands_on_its_encoder_and_what_it_knows_of_characters(tmp_path: Path) -> None:
    data = checked(whole(), tmp_path)
    codec = codec_for(data)
    torch.manual_seed(0)
    base = task_for(data).build(codec)
    fewer = checked(sounds(4) | {"m.jsonl": lines(list(sounds(4)), "ten")}, tmp_path)
    task = task_for(fewer).on_base(task_for(data))
    kept = codec_for(fewer, codec)
    assert kept.alphabet == codec.alphabet
    assert task.same_outputs(kept, codec)
    torch.manual_seed(1)
    learner = task.build(kept)
    learner.take_over(base, head=True)
    inputs = kept.encode(fewer.splits["train"]).batch(torch.arange(2)).inputs
    base.eval()
    learner.eval()
    plain = (*inputs[:2], torch.tensor([[1.0, 0, 0]] * 2))
    assert torch.equal(learner.predict(*plain), base.predict(*plain))


def test_other_characters_get_a_head_of_their_own(tmp_path: Path) -> None:
    data = checked(whole(), tmp_path)
    base = codec_for(data)
    other = checked(sounds(4) | {"m.jsonl": lines(list(sounds(4)), "하나")}, tmp_path)
    codec = codec_for(other, base)
    assert codec.alphabet == "나하"
    assert not task_for(other).same_outputs(codec, base)
    learner, old = task_for(other).build(codec), task_for(data).build(base)
    learner.take_over(old, head=False)
    mine, its = learner.backbone.state_dict(), old.backbone.state_dict()
    assert all(torch.equal(mine[name], its[name]) for name in its)
    learner.start(
        Training().resolve(**task_for(other).defaults(Facts({}, {"train": 4}))),
        Transfer(trainable_blocks=0),
        1,
    )
    learner.enter_epoch(0)
    before = {name: value.clone() for name, value in its.items()}
    learner.train_step(codec.encode(other.splits["train"]).batch(torch.arange(3)), 0)
    assert all(torch.equal(learner.backbone.state_dict()[n], v) for n, v in before.items())


def test_a_base_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="does not listen"):
        codec_for(checked(whole(), tmp_path), "no codec of speech")


def test_long_batches_are_answered_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = checked(whole(), tmp_path)
    codec = codec_for(data)
    torch.manual_seed(0)
    trained = Trained(task_for(data), codec, task_for(data).build(codec))
    columns = codec.encode(data.splits["train"])
    at_once = trained.predictions(columns)
    monkeypatch.setattr("models.parts.speech.SpeechBackbone.at_once", 120)
    for one, other in zip(trained.predictions(columns), at_once, strict=True):
        assert one.text == other.text
        assert [word.start for word in one.words] == [word.start for word in other.words]
