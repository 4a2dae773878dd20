"""How speech recognition shows sounds to published networks."""

import io
import json
import zipfile

import numpy as np
import pytest
import soundfile
import torch

from models.pretrained_sound import PretrainedSound
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.parts.problems import Invalid
from tasks.parts.sound_augmentation import SoundAugmentation
from tasks.speech_recognition import SpeechRecognition
from tasks.trained import Trained
from tests.published import find, smallest

FACTS = Facts({"rate": 8_000, "longest": 2.0, "seconds": 60.0}, {"train": 100})


def known() -> PretrainedSound:
    found = smallest(PretrainedSound)
    assert isinstance(found, PretrainedSound)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """Noise at a rate that is not the checkpoint's, of a quarter of a second to a second."""
    path, lines = tmp_path_factory.mktemp("sounds") / "noise.zip", []
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(8):
            file = io.BytesIO()
            soundfile.write(file, draw.normal(0, 0.1, 2_000 + 857 * number), 8_000, format="WAV")
            archive.writestr(f"{number}.wav", file.getvalue())
            lines.append(json.dumps({"audio": f"{number}.wav", "text": "go on"}))
        archive.writestr("list.jsonl", "\n".join(lines))
    return SpeechRecognition.check({"file": Upload(path, "noise.zip")}, DatasetOptions())


@pytest.fixture(scope="module")
def trained(data: Checked) -> Trained:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    task = SpeechRecognition(architecture=known()).resolve(facts)
    reading = task.reading(find(known()))
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, reading)
    torch.manual_seed(0)
    return Trained(task, codec, task.build(codec))


def test_the_checkpoint_decides_on_the_rate_and_hides_stretches_by_itself() -> None:
    task = SpeechRecognition(architecture=known()).resolve(FACTS)
    assert (task.rate, task.augmentation) == (16_000, SoundAugmentation())
    assert task.defaults(FACTS) == {}
    assert task.resolve(FACTS) == task
    noisy = SpeechRecognition(architecture=known(), augmentation=SoundAugmentation(noise=0.1))
    assert noisy.resolve(FACTS).augmentation.noise == 0.1


def test_what_cannot_be_done_to_samples_is_refused() -> None:
    varied = SoundAugmentation(noise=0.1, speed=0.1, time_masks=1)
    asked = SpeechRecognition(architecture=known(), rate=8_000, augmentation=varied)
    with pytest.raises(Invalid) as caught:
        asked.resolve(FACTS)
    assert [problem.loc for problem in caught.value.problems] == [
        ("task", "rate"),
        ("task", "augmentation", "speed"),
        ("task", "augmentation", "time_masks"),
    ]


def test_a_recording_is_answered_alike_alone_and_beside_longer_ones(
    data: Checked, trained: Trained
) -> None:
    columns = trained.codec.encode(data.splits["train"])
    together = trained.predictions(columns)
    assert any(prediction.words for prediction in together)
    for place, expected in enumerate(together):
        with torch.inference_mode():
            outputs = trained.learner.predict(*columns.batch(torch.tensor([place])).inputs)
        (alone,) = trained.codec.decode(outputs)
        assert alone.text == expected.text
        assert [word.start for word in alone.words] == [word.start for word in expected.words]


def test_words_have_times_within_their_recording_in_steps_of_its_states(
    data: Checked, trained: Trained
) -> None:
    columns = trained.codec.encode(data.splits["train"])
    seconds = data.splits["train"]["seconds"].to_list()
    for prediction, length in zip(trained.predictions(columns), seconds, strict=True):
        for word in prediction.words:
            assert 0 <= word.start < word.end <= length + 0.01
            assert round(word.start * 100) % 2 == 0


def test_what_is_learned_counts_the_states_of_the_checkpoint(
    data: Checked, trained: Trained
) -> None:
    columns = trained.codec.encode(data.splits["train"])
    batch, learner = columns.batch(torch.arange(columns.examples)), trained.learner.eval()
    with torch.no_grad():
        together = float(learner.loss(batch))
        alone = [float(learner.loss(one)) for one in batch.split(len(batch))]
    assert together == pytest.approx(sum(alone) / len(alone), rel=1e-4)
    assert together > 0
