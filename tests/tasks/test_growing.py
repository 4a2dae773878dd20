"""Heads that grow by new labels, in every task of labels."""

from pathlib import Path

import pytest
import torch

from models.parts.training import Training, Transfer
from tasks import catalog
from tasks.base import Facts
from tasks.parts.growing import covers, outputs_on
from tasks.parts.labels import LabelCodec
from tasks.parts.problems import Invalid
from tests.toys import toy

GROWING = sorted(
    name
    for name, task in catalog.tasks().items()
    if issubclass(task.codec_type, LabelCodec) and task.codec_type.grows
)


def test_these_tasks_have_labels_that_can_be_added() -> None:
    assert GROWING == [
        "image-classification",
        "series-classification",
        "tabular-classification",
        "text-classification",
        "text-pair-classification",
        "video-classification",
    ]


@pytest.mark.parametrize("name", GROWING)
def test_a_grown_head_scores_the_old_labels_as_its_base_does(name: str, tmp_path: Path) -> None:
    kind = catalog.task_named(name)
    checked = kind.check(toy(name, tmp_path, 24), kind.options_type())
    facts = Facts(checked.schema, {split: f.height for split, f in checked.splits.items()})
    task = catalog.resolve(name, facts, None, Training(), None).task
    codec = task.learn_codec(checked.splits["train"].lazy(), checked.schema)
    old = codec.model_copy(update={"labels": codec.labels[1:], "counts": codec.counts[1:]})
    grown, kept = outputs_on(task, codec, task, old, Transfer())
    assert kept
    assert grown.labels == [*codec.labels[1:], codec.labels[0]]
    assert sorted(grown.counts) == sorted(codec.counts)
    assert covers(task, grown, task, old)
    assert not covers(task, old, task, grown)
    torch.manual_seed(0)
    base, learner = task.build(old), task.build(grown)
    learner.take_over(base, head=True)
    columns = codec.encode(checked.splits["train"].head(4), targets=False)
    inputs = columns.batch(torch.arange(columns.examples)).inputs
    with torch.inference_mode():
        before, after = base.eval().predict(*inputs), learner.eval().predict(*inputs)
    assert torch.allclose(after[:, : before.shape[1]], before, atol=1e-5)


def test_intents_do_not_grow_and_say_so(tmp_path: Path) -> None:
    kind = catalog.task_named("intent-and-slots")
    checked = kind.check(toy(kind.option_name(), tmp_path), kind.options_type())
    facts = Facts(checked.schema, {split: f.height for split, f in checked.splits.items()})
    task = catalog.resolve(kind.option_name(), facts, None, Training(), None).task
    codec = task.learn_codec(checked.splits["train"].lazy(), checked.schema)
    old = codec.model_copy(update={"labels": codec.labels[1:], "counts": codec.counts[1:]})
    assert not outputs_on(task, codec, task, old, Transfer()).kept
    with pytest.raises(Invalid, match="are not those of"):
        outputs_on(task, codec, task, old, Transfer(head="grown"))
