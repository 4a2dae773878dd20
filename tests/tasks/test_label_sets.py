"""Examples with several labels or none: from uploads in many forms to predictions and what they are worth."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from models.bag_of_embeddings import BagOfEmbeddings
from models.cnn import CNN
from models.parts.losses import BinaryCrossEntropy, CrossEntropy, Focal
from models.parts.schedules import Constant
from models.parts.training import Training
from tasks.base import Checked, DatasetOptions, Facts, Task, Upload
from tasks.image_classification import ImageClassification, ImageCodec
from tasks.parts.augmentation import Augmentation
from tasks.parts.label_sets import (
    SETS,
    LabelsOptions,
    LabelsPrediction,
    evaluate_label_sets,
    score_label_sets,
)
from tasks.parts.labels import LabelPrediction
from tasks.parts.problems import Invalid
from tasks.text_classification import TextClassification, TextClassificationCodec
from tasks.trained import Trained, load, save_weights
from worker.loop import Split, fit

PIPES = LabelsOptions(label_separator="|")


def text_file(folder: Path, content: str, name: str = "texts.csv") -> dict[str, Upload]:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return {"file": Upload(path, name)}


def texts(folder: Path, options: DatasetOptions = PIPES, count: int = 60) -> Checked:
    """A label for each colour that a text names."""
    draw = np.random.default_rng(0)
    rows = ["text,labels"]
    for number in range(count):
        named = [colour for colour in ("red", "green", "blue") if draw.random() < 0.5]
        rows.append(f"thing {number} is {' and '.join(named)},{'|'.join(named)}")
    return TextClassification.check(text_file(folder, "\n".join(rows)), options)


def facts(data: Checked) -> Facts:
    return Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})


def trained(task: Task, data: Checked, **training: Any) -> Trained:
    chosen = {"schedule": Constant(), **task.architecture.defaults(facts(data).examples)}
    plan = Training.model_validate({"batch_size": 16, **training}).resolve(**chosen)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    torch.manual_seed(0)
    learner = task.build(codec)
    splits = {n: Split(codec.encode(frame), frame) for n, frame in data.splits.items()}
    steps = -(-facts(data).examples // 16) * plan.epochs
    learner.start(plan, None, steps)
    found = Trained(task, codec, learner)
    for _ in fit(found, splits["train"], splits["validation"], plan):
        pass
    return found


# Uploads


def test_labels_are_cut_at_the_separator_and_may_be_none(tmp_path: Path) -> None:
    rows = 'text,label\none,"b | a|b"\ntwo,\nthree,c||a\nfour,c\n'
    data = TextClassification.check(text_file(tmp_path, rows), PIPES)
    frame = pl.concat(data.splits.values())
    assert frame["label"].dtype == SETS
    assert dict(frame.iter_rows()) == {
        "one": ["b", "a"],
        "two": [],
        "three": ["c", "a"],
        "four": ["c"],
    }


def test_schema_and_report_tell_of_several_labels(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"{n},{'a|b' if n % 2 else ''}\n" for n in range(10))
    data = TextClassification.check(text_file(tmp_path, rows), PIPES)
    train, held = data.splits["train"], data.splits["validation"]
    counts = [int((frame["label"].list.len() > 0).sum()) for frame in (train, held)]
    assert data.schema["labels"] == ["a", "b"]
    assert data.schema["multi_label"] is True
    shares = dict(zip(("train", "validation"), counts, strict=True))
    assert data.report["classes"] == {"a": shares, "b": shares}
    assert data.report["unlabelled"] == {"train": 8 - counts[0], "validation": 2 - counts[1]}
    assert data.report["labels_per_example"] == {"mean": counts[0] / 4, "max": 2}


def test_a_rare_label_is_trained_on_in_whatever_split_is_drawn(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(
        f"{n},{'often|rare' if n == 7 else 'often'}\n" for n in range(20)
    )
    files = text_file(tmp_path, rows)
    for seed in range(8):
        split = {"fraction": 0.5, "seed": seed}
        options = LabelsOptions.model_validate({"label_separator": "|", "split": split})
        data = TextClassification.check(files, options)
        assert data.report["classes"]["rare"] == {"train": 1, "validation": 0}
        assert data.splits["train"].columns == ["text", "label"]


def test_without_a_separator_a_cell_is_one_label(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"{n},{'a|b' if n % 2 else 'a'}\n" for n in range(10))
    data = TextClassification.check(text_file(tmp_path, rows), LabelsOptions())
    assert data.schema["labels"] == ["a", "a|b"]
    assert "multi_label" not in data.schema
    assert data.splits["train"]["label"].dtype == pl.String


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_lists_need_no_separator(format: str, tmp_path: Path) -> None:
    rows = [{"text": str(n), "labels": [["x"], ["y", "x"], []][n % 3]} for n in range(12)]
    path = tmp_path / f"texts.{format}"
    if format == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pl.DataFrame(rows, schema={"text": pl.String, "labels": SETS}).write_parquet(path)
    data = TextClassification.check({"file": Upload(path, path.name)}, DatasetOptions())
    assert data.schema["multi_label"] is True
    found = dict(pl.concat(data.splits.values()).iter_rows())
    assert found == {row["text"]: row["labels"] for row in rows}


def test_a_label_that_only_validation_has_is_named_with_its_line(tmp_path: Path) -> None:
    files = {
        "train": text_file(tmp_path, "text,label\na,x|y\nb,\n", "train.csv")["file"],
        "validation": text_file(tmp_path, "text,label\na,x\nb,x|z\n", "valid.csv")["file"],
    }
    with pytest.raises(Invalid) as caught:
        TextClassification.check(files, PIPES)
    (problem,) = caught.value.problems
    assert problem.loc == ("validation", "line", 3, "label")
    assert (problem.msg, problem.found) == ("the train split lacks this label", "z")


def test_data_without_any_label_and_empty_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no label"):
        TextClassification.check(text_file(tmp_path, "text,label\na,\nb,|\nc,\n"), PIPES)
    rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": [" "]}]
    lines = "\n".join(map(json.dumps, [*rows, rows[0], rows[0]]))
    with pytest.raises(Invalid, match="the label is empty"):
        TextClassification.check(text_file(tmp_path, lines, "a.jsonl"), DatasetOptions())


def test_lists_of_texts_are_no_texts(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": ["a"], "label": "x"}) for _ in range(4))
    with pytest.raises(Invalid, match="lists in the place of texts"):
        TextClassification.check(text_file(tmp_path, lines, "a.jsonl"), DatasetOptions())


# Archives with a table


def stripes(folder: Path, table: str, tables: dict[str, str] | None = None) -> dict[str, Upload]:
    """Images of which the first has a lying bar, the second a standing one, the third both, the fourth none."""
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 60, (12, 12), dtype=np.uint8)
            place = 2 + number % 7
            if number % 4 in (0, 2):
                pixels[place : place + 2] = 220
            if number % 4 in (1, 2):
                pixels[:, place : place + 2] = 220
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            archive.writestr(f"images/{number}.png", file.getvalue())
        for name, content in (tables or {"labels.csv": table}).items():
            archive.writestr(name, content)
    return {"file": Upload(path, "images.zip")}


SETS_OF = ["lying", "standing", "lying|standing", ""]
BARS = "image,label\n" + "".join(f"images/{n}.png,{SETS_OF[n % 4]}\n" for n in range(40))


def test_a_table_beside_images_labels_them(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,{'even' if n % 2 == 0 else 'odd'}\n" for n in range(12))
    data = ImageClassification.check(
        stripes(tmp_path, "file_name,class\n" + rows), DatasetOptions()
    )
    assert data.schema["labels"] == ["even", "odd"]
    assert "multi_label" not in data.schema
    frame = pl.concat(data.splits.values())
    assert frame.schema == {"image": pl.Binary, "label": pl.String, "name": pl.String}
    assert frame.height == 12, "what is not listed is passed over"
    assert dict(frame.select("name", "label").iter_rows())["images/3.png"] == "odd"


def test_a_table_gives_images_several_labels(tmp_path: Path) -> None:
    data = ImageClassification.check(stripes(tmp_path, BARS), PIPES)
    assert data.schema["multi_label"] is True
    found = dict(pl.concat(data.splits.values()).select("name", "label").iter_rows())
    assert found["images/2.png"] == ["lying", "standing"]
    assert found["images/3.png"] == []


def test_tables_tell_splits_by_their_names(tmp_path: Path) -> None:
    head, *lines = BARS.splitlines()
    tables = {
        "images/train.csv": "\n".join(
            [head, *(line.removeprefix("images/") for line in lines[:30])]
        ),
        "test.csv": "\n".join([head, *lines[30:]]),
    }
    data = ImageClassification.check(stripes(tmp_path, "", tables), PIPES)
    assert data.report["examples"] == {"train": 24, "validation": 6, "test": 10}


def test_a_column_of_a_table_may_tell_splits_and_others_may_be_named(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,{n % 2},{'train' if n < 30 else 'validation'}\n" for n in range(40))
    mapped = {"column_mapping": {"file": "picture", "label": "parity"}, "split": {"by": "fold"}}
    options = LabelsOptions.model_validate(mapped)
    data = ImageClassification.check(stripes(tmp_path, "picture,parity,fold\n" + rows), options)
    assert data.report["examples"] == {"train": 30, "validation": 10}


@pytest.mark.parametrize(
    ("table", "loc", "message"),
    [
        ("image,label\nimages/1.png,a\nimages/77.png,b\n", ("line", 3, "file"), "no such file"),
        ("image,label\n../1.png,a\nimages/2.png,b\n", ("line", 2, "file"), "no such file"),
        ("image,label\nimages/1.png,a\n1.png,b\n", ("images/1.png",), "more than once"),
        ("image,label\nimages/1.png\n", ("line", 2), "number of cells"),
        ("image,label\n,a\n", ("line", 2, "file"), "no such file"),
        ("image,label\nlabels.csv,a\nimages/2.png,b\n", ("labels.csv",), "not a readable image"),
    ],
)
def test_faulty_tables_are_refused_by_their_lines(
    table: str, loc: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Invalid) as caught:
        ImageClassification.check(stripes(tmp_path, table), DatasetOptions())
    problem = caught.value.problems[0]
    assert message in problem.msg
    assert problem.loc[-len(loc) :] == loc
    assert problem.loc[0] == "file"


def test_a_table_without_labels_names_its_columns(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no column looks like the label"):
        ImageClassification.check(stripes(tmp_path, "image,kind\n1.png,a\n"), DatasetOptions())


def test_a_format_that_was_asked_for_is_kept_to(tmp_path: Path) -> None:
    folders = DatasetOptions(format="class-folders")
    with pytest.raises(Invalid, match="not in the folder of a class"):
        ImageClassification.check(stripes(tmp_path, BARS), folders)
    tables, files = DatasetOptions(format="manifest"), stripes(tmp_path, "", {"images/0.txt": ""})
    with pytest.raises(Invalid, match="no table in the archive"):
        ImageClassification.check(files, tables)


# Requests


def test_what_is_left_open_follows_the_data(tmp_path: Path) -> None:
    several = facts(texts(tmp_path))
    task = TextClassification().resolve(several)
    assert (task.multi_label, task.loss) == (True, BinaryCrossEntropy())
    assert task.aim.metric == "micro_f1"
    assert task.answer_type is LabelsPrediction
    alone = several._replace(schema={**several.schema, "multi_label": False})
    task = TextClassification().resolve(alone)
    assert (task.multi_label, task.loss) == (False, CrossEntropy())
    assert task.aim.metric == "accuracy"
    assert task.answer_type is LabelPrediction


def test_a_loss_for_other_labels_than_the_data_has_is_refused(tmp_path: Path) -> None:
    several = facts(texts(tmp_path))
    with pytest.raises(Invalid, match="not a loss for examples with several labels"):
        TextClassification(loss=CrossEntropy()).resolve(several)
    with pytest.raises(Invalid, match="not a loss for examples with one label"):
        TextClassification(loss=Focal(), multi_label=False).resolve(
            several._replace(schema={**several.schema, "multi_label": False})
        )
    with pytest.raises(Invalid, match="examples of the data set have several labels"):
        TextClassification(multi_label=False).resolve(several)


# Codes and predictions

CODEC = ImageCodec(
    labels=["a", "b", "c"],
    counts=[1, 1, 1],
    multi_label=True,
    side=8,
    channels=1,
    mean=[0],
    std=[1],
)


def test_labels_become_ones_at_their_places() -> None:
    found = CODEC.encode_labels(pl.Series("label", [["c", "a"], [], ["b"]]))
    assert found.values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert CODEC.encode_labels(pl.Series("y", [[]], dtype=SETS)).values.sum() == 0
    with pytest.raises(Invalid, match="unknown label"):
        CODEC.encode_labels(pl.Series("label", [["d"]]))


def test_labels_beyond_the_threshold_are_given_best_first() -> None:
    scores = torch.tensor([[0.4, 0.9, 0.6], [0.1, 0.3, 0.2]]).logit()
    first, second = CODEC.decode(scores)
    assert (first.label, first.labels) == ("b", ["b", "c"])
    assert first.scores == pytest.approx({"a": 0.4, "b": 0.9, "c": 0.6})
    assert (second.label, second.labels) == ("b", [])
    strict = CODEC.model_copy(update={"threshold": 0.8})
    assert strict.decode(scores)[0].labels == ["b"]


def made(rows: list[list[float]]) -> list[LabelsPrediction]:
    found: list[LabelsPrediction] = CODEC.decode(torch.tensor(rows).logit())
    return found


def test_metrics_of_a_case_by_hand() -> None:
    predictions = made([[0.9, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.1]])
    found = score_label_sets(predictions, [["a"], ["b"], []])
    # Two hits, one label too many, none missed.
    assert found["micro_f1"] == pytest.approx(4 / 5)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["mean_average_precision"] == pytest.approx((1 + 1 / 2) / 2)


def test_metrics_agree_with_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    scores, having = draw.uniform(0.01, 0.99, (50, 3)), draw.integers(0, 2, (50, 3))
    truth = [["abc"[place] for place in np.flatnonzero(row)] for row in having]
    found = score_label_sets(made(scores.tolist()), truth)
    given = scores >= 0.5
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(having, given, average=average))
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(having, scores))


def test_a_label_the_model_does_not_know_was_missed() -> None:
    found = evaluate_label_sets(made([[0.9, 0.1, 0.1]]), [["a", "z"]])
    assert found["micro_f1"] == pytest.approx(2 / 3)
    assert found["per_class"]["z"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
        "average_precision": 1.0,
    }
    assert found["per_class"]["b"]["average_precision"] is None
    (worst,) = found["worst"]
    assert worst["truth"] == ["a", "z"]
    assert worst["predicted"] == ["a"]


def test_nothing_given_where_nothing_is_there_is_an_exact_match_without_warnings() -> None:
    found = score_label_sets(made([[0.1, 0.1, 0.1]] * 2), [[], []])
    assert found == {
        "micro_f1": 0.0,
        "macro_f1": 0.0,
        "exact_match": 1.0,
        "mean_average_precision": 0.0,
    }


# Losses


def test_balanced_labels_count_as_much_there_as_absent() -> None:
    loss = BinaryCrossEntropy(label_weights="balanced").build([1, 5], 10)
    having = torch.tensor([[1, 1], *[[0, 1]] * 4, *[[0, 0]] * 5], dtype=torch.uint8)
    scores = torch.zeros(10, 2, requires_grad=True)
    loss(scores, having).backward()
    torch.testing.assert_close(scores.grad.sum(0), torch.zeros(2))


def test_focal_loss_is_cross_entropy_of_what_is_unsure() -> None:
    scores, having = torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 0]], dtype=torch.uint8)
    plain = BinaryCrossEntropy().build([1, 1], 2)(scores, having)
    torch.testing.assert_close(Focal(gamma=0).build([1, 1], 2)(scores, having), plain / 2)
    right = torch.tensor([2.0, 1.0]).sigmoid()
    by_hand = (torch.tensor([0.25, 0.75]) * (1 - right) ** 2 * -right.log()).mean()
    torch.testing.assert_close(Focal(alpha=0.25).build([1, 1], 2)(scores, having), by_hand)


# Learning


def test_a_model_of_one_label_refuses_data_of_several() -> None:
    alone = CODEC.model_copy(update={"multi_label": False})
    several = pl.Series("label", [["a"]])
    with pytest.raises(Invalid, match="examples have several labels"):
        alone.encode_labels(several)
    made_up = [LabelPrediction(label="a", scores={"a": 1.0, "b": 0.0})]
    with pytest.raises(Invalid, match="examples have several labels"):
        TextClassification(multi_label=False).score(made_up, several.to_frame())


def test_tables_may_have_labels_alone_and_in_lists(tmp_path: Path) -> None:
    tables = {
        "train.jsonl": '{"image": "images/0.png", "label": ["a", "b"]}\n'
        + '{"image": "images/1.png", "label": []}\n{"image": "images/2.png", "label": ["a"]}',
        "test.csv": "image,label\nimages/3.png,a\n",
    }
    data = ImageClassification.check(stripes(tmp_path, "", tables), DatasetOptions())
    assert data.splits["test"]["label"].to_list() == [["a"]]


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(label_weights="balanced"), Focal()])
def test_texts_get_every_label_they_name(loss: Any, tmp_path: Path) -> None:
    data = texts(tmp_path)
    task = TextClassification(architecture=BagOfEmbeddings(), loss=loss).resolve(facts(data))
    model = trained(task, data, epochs=12)
    held = data.splits["validation"]
    predictions = model.predictions(model.codec.encode(held, targets=False))
    metrics = task.score(predictions, held)
    assert set(metrics) == set(task.measures)
    assert metrics["micro_f1"] > 0.9
    assert set(metrics) < set(task.evaluate(predictions, held))
    save_weights(model.learner.state_dict(), tmp_path / "weights")
    again = load(task, model.codec.model_dump(mode="json"), tmp_path / "weights")
    assert again.predictions(model.codec.encode(held, targets=False)) == predictions


def test_data_with_one_label_each_may_be_learned_label_by_label(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"{['red', 'blue'][n % 2]} {n},{n % 2}\n" for n in range(40))
    data = TextClassification.check(text_file(tmp_path, rows), DatasetOptions())
    task = TextClassification(architecture=BagOfEmbeddings(), multi_label=True).resolve(facts(data))
    model = trained(task, data, epochs=12)
    (prediction,) = model.predict(model.codec.read_inputs([{"text": "red 3"}]))
    assert prediction.labels == ["0"]
    metrics = task.score(
        model.predictions(model.codec.encode(data.splits["validation"])), data.splits["validation"]
    )
    assert metrics["exact_match"] > 0.9


def test_a_classifier_of_one_label_is_a_base_for_several(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"{['red', 'blue'][n % 2]} {n},{n % 2}\n" for n in range(20))
    alone = TextClassification.check(text_file(tmp_path, rows, "alone.csv"), DatasetOptions())
    first = TextClassification(architecture=BagOfEmbeddings()).resolve(facts(alone))
    base = trained(first, alone, epochs=1)
    data = texts(tmp_path)
    task = TextClassification(architecture=BagOfEmbeddings()).on_base(first).resolve(facts(data))
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, base.codec)
    assert isinstance(codec, TextClassificationCodec)
    assert codec.vocabulary == base.codec.vocabulary
    assert not task.same_outputs(codec, base.codec)
    assert not task.same_outputs(codec, codec.model_copy(update={"multi_label": False})), (
        "sigmoids and softmax of the same labels are not the same"
    )
    learner = task.build(codec)
    learner.take_over(base.learner, head=False)
    ours, theirs = learner.backbone.state_dict(), base.learner.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_images_get_every_label_that_applies(tmp_path: Path) -> None:
    data = ImageClassification.check(stripes(tmp_path, BARS), PIPES)
    task = ImageClassification(
        architecture=CNN(channels=[16, 32], dropout=0), augmentation=Augmentation(shift=0.1)
    ).resolve(facts(data))
    model = trained(task, data, epochs=40)
    held = data.splits["validation"]
    predictions = model.predict(model.codec.read_inputs(held["image"].to_list()))
    assert task.score(predictions, held)["micro_f1"] > 0.9
