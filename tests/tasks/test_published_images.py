"""How tasks on images show them to published networks."""

from typing import Any

import pytest

from models.parts.published import Published
from models.pretrained_image import PretrainedImage, Shown
from tasks.base import Facts, Task
from tasks.image_classification import ImageClassification
from tasks.object_detection import ObjectDetection
from tasks.object_tracking import ObjectTracking
from tasks.parts.problems import Invalid
from tasks.semantic_segmentation import SemanticSegmentation
from tasks.style_transfer import StyleTransfer
from tasks.video_classification import VideoClassification
from tests.published import find, smallest

SHOWN = Shown(mean=[1, 2, 3], std=[4, 5, 6], side=224)
KNOWN = PretrainedImage(config={"model_type": "resnet"}, shown=SHOWN)


def facts(side: int) -> Facts:
    schema = {"width": side, "height": side, "colour": False, "object": 0.5, "frames": 8}
    return Facts(schema, {"train": 100})


@pytest.mark.parametrize(("of_images", "chosen"), [(32, 112), (150, 152), (224, 224), (4000, 224)])
@pytest.mark.parametrize("task", [ImageClassification, VideoClassification])
def test_the_side_is_that_of_the_images_within_what_the_network_knows(
    task: type[Task], of_images: int, chosen: int
) -> None:
    resolved: Any = task(architecture=KNOWN).resolve(facts(of_images))
    assert resolved.image_size == chosen
    assert task(architecture=KNOWN, image_size=64).resolve(facts(of_images)).image_size == 64


@pytest.mark.parametrize(
    "task",
    [
        ImageClassification,
        VideoClassification,
        ObjectDetection,
        ObjectTracking,
        SemanticSegmentation,
    ],
)
def test_grey_images_are_shown_in_the_colours_of_the_checkpoint(task: type[Task]) -> None:
    resolved: Any = task(architecture=KNOWN).resolve(facts(64))
    reading = resolved.reading(find(KNOWN))
    assert (resolved.channels, reading.channels) == (3, 3)
    assert (reading.mean, reading.std) == (SHOWN.mean, SHOWN.std)
    with pytest.raises(Invalid, match="looks at colours"):
        task(architecture=KNOWN, channels=1).resolve(facts(64))


def test_a_checkpoint_says_how_it_was_shown_images() -> None:
    found = smallest(PretrainedImage)
    assert isinstance(found, PretrainedImage)
    assert found.shown is not None
    assert found.shown.side == 16
    assert found.shown.mean == pytest.approx([127.5, 102, 76.5])
    assert PretrainedImage.model_validate_json(found.model_dump_json()) == found
    assert isinstance(find(found), Published)


def test_styles_are_not_compared_by_a_published_network_that_no_base_brings() -> None:
    with pytest.raises(Invalid, match="name it as `base`"):
        StyleTransfer(features=PretrainedImage()).resolve(facts(64))
