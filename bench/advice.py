"""Advice: how the service ranks bases for a data set, beside what fine-tuning each of them comes to.

`--data DIR` holds the data sets of `bench quality`. Bases learn from one part, or from something else altogether; what
is fine-tuned is a small sample of another part, which shares no example with theirs.
"""

import argparse
import csv
import random
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

from scipy.stats import kendalltau  # type: ignore[import-untyped]

from bench._service import service
from bench.transfer import Files, intents, low_and_high_signs, women_and_men
from cli.client import Answer, Client
from cli.digits import Digits, digits, image_folder

SEEDS = 3
CRITERIA = ("score", "neighbour_score", "log_evidence", "separation")
ONE_EPOCH = {"epochs": 1}
_FEW_IMAGES, _FEW_TEXTS, _FEW_ROWS = 100, 200, 200
Maker = Callable[[Path, Path], Files]
"""From the folder with all data sets to files, written into another folder."""


class Source(NamedTuple):
    """Data that is uploaded once."""

    task: str
    make: Maker
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Base(NamedTuple):
    """A model that something else might begin with."""

    source: str
    architecture: str
    training: dict[str, Any] = {}  # noqa: RUF012 - never changed


def _part(cut: Callable[[Path, Path], tuple[Files, Files]], folder: str, place: int) -> Maker:
    """One of the two parts that a data set is cut into."""

    def make(data: Path, made: Path) -> Files:
        return cut(next(data.rglob(folder)), made)[place]

    return make


def _few(whole: Maker, thin: Callable[[Path, Path], Path]) -> Maker:
    """The same with few examples to learn from."""

    def make(data: Path, made: Path) -> Files:
        files = whole(data, made)
        train = files["train"]
        return {**files, "train": thin(train, made / f"few.{train.name}")}

    return make


def _lines(count: int, header: int) -> Callable[[Path, Path], Path]:
    """So many lines of a file, drawn once and for all, behind its header."""

    def thin(source: Path, target: Path) -> Path:
        lines = source.read_text("utf-8").splitlines()
        drawn = random.Random(0).sample(lines[header:], count)
        target.write_text("\n".join([*lines[:header], *drawn, ""]), "utf-8")
        return target

    return thin


def _images(source: Path, target: Path) -> Path:
    """Few images of an archive, as many of each label."""
    with ZipFile(source) as whole, ZipFile(target, "w") as part:
        names = sorted(name for name in whole.namelist() if Path(name).suffix)
        labels = sorted({Path(name).parent.name for name in names})
        for label in labels:
            alike = [name for name in names if Path(name).parent.name == label]
            for name in random.Random(0).sample(alike, _FEW_IMAGES // len(labels)):
                part.writestr(name, whole.read(name))
    return target


def _written(wanted: Collection[int]) -> Maker:
    """Scikit-learn's images of some handwritten digits."""

    def make(data: Path, made: Path) -> Files:
        return {
            name: _pack(made / f"{min(wanted)}.{name}.zip", part, wanted)
            for name, part in zip(("train", "test"), digits(), strict=True)
        }

    return make


def _pack(path: Path, part: Digits, wanted: Collection[int]) -> Path:
    places = [place for place, digit in enumerate(part.digits) if digit in wanted]
    return image_folder(path, part.images[places], map(str, part.digits[places]))


def _as_it_is(folder: str, *names: str) -> Maker:
    """Files of a data set: its train split, and others."""

    def make(data: Path, made: Path) -> Files:
        found = next(data.rglob(folder))
        return {Path(name).stem.replace("valid", "validation"): found / name for name in names}

    return make


def _reviews(few: bool) -> Maker:
    """Korean reviews: the first 4,000 for bases, few of the others, and 1,000 to test by."""

    def make(data: Path, made: Path) -> Files:
        found = next(data.rglob("nsmc_ko"))
        header, *lines = (found / "train.csv").read_text("utf-8").splitlines()
        train = lines[-_FEW_TEXTS:] if few else lines[:4_000]
        test = (found / "test.csv").read_text("utf-8").splitlines()[1:1_001]
        files = {}
        for name, kept in (("train", train), ("test", test)):
            files[name] = made / f"{'few' if few else 'many'}.{name}.csv"
            files[name].write_text("\n".join([header, *kept, ""]), "utf-8")
        return files

    return make


def _men_at_random(data: Path, made: Path) -> Files:
    """Men of the census, each with the income of another."""
    train = women_and_men(next(data.rglob("adult")), made)[0]["train"]
    with train.open(newline="") as file:
        header, *rows = csv.reader(file)
    incomes = [row[-1] for row in rows]
    random.Random(0).shuffle(incomes)
    target = made / "random.men.csv"
    with target.open("w", newline="") as file:
        mixed = ([*row[:-1], income] for row, income in zip(rows, incomes, strict=True))
        csv.writer(file).writerows([header, *mixed])
    return {"train": target}


_INTENT = {"column_mapping": {"label": "intent"}}
_INCOME = {"column_mapping": {"target": "income"}}
IMAGES, TEXTS, TABLES = "image-classification", "text-classification", "tabular-classification"
SOURCES = {
    "signs 0-4": Source(IMAGES, _part(low_and_high_signs, "sign_language_digits", 0)),
    "signs 5-9": Source(
        IMAGES, _few(_part(low_and_high_signs, "sign_language_digits", 1), _images)
    ),
    "digits 0-4": Source(IMAGES, _written(range(5))),
    "digits 5-9": Source(IMAGES, _few(_written(range(5, 10)), _images)),
    "raccoons": Source("object-detection", _as_it_is("raccoon_coco", "train.zip", "test.zip")),
    "4 intents": Source(TEXTS, _part(intents, "snips_en", 0), _INTENT),
    "3 intents": Source(TEXTS, _few(_part(intents, "snips_en", 1), _lines(_FEW_TEXTS, 0)), _INTENT),
    "pairs": Source(
        "text-pair-classification",
        _as_it_is("sick_en", "train.jsonl", "valid.jsonl", "test.jsonl"),
    ),
    "speech parts": Source(
        "token-classification",
        _as_it_is("ud_english_ewt", "train.conllu", "valid.conllu", "test.conllu"),
    ),
    "reviews": Source(TEXTS, _reviews(few=False)),
    "few reviews": Source(TEXTS, _reviews(few=True)),
    "men": Source(TABLES, _part(women_and_men, "adult", 0), _INCOME),
    "men, random": Source(TABLES, _men_at_random, _INCOME),
    "women": Source(TABLES, _few(_part(women_and_men, "adult", 1), _lines(_FEW_ROWS, 1)), _INCOME),
}
_OF_IMAGES = (
    Base("signs 0-4", "cnn"),
    Base("signs 0-4", "cnn", ONE_EPOCH),
    Base("signs 0-4", "resnet"),
    Base("digits 0-4", "cnn"),
    Base("digits 0-4", "resnet"),
    Base("raccoons", "cnn", {"epochs": 10}),
)
_OF_TEXTS = (
    Base("4 intents", "text-cnn", {"epochs": 5}),
    Base("4 intents", "text-cnn", ONE_EPOCH),
    Base("4 intents", "bag-of-embeddings", {"epochs": 5}),
    Base("pairs", "text-cnn", {"epochs": 5}),
    Base("speech parts", "text-cnn", {"epochs": 2}),
    Base("reviews", "text-cnn", {"epochs": 5}),
    Base("reviews", "text-cnn", ONE_EPOCH),
    Base("reviews", "bag-of-embeddings", {"epochs": 5}),
)
_OF_TABLES = (
    Base("men", "mlp"),
    Base("men", "mlp", ONE_EPOCH),
    Base("men, random", "mlp"),
    Base("men, random", "mlp", ONE_EPOCH),
)
TARGETS: Mapping[str, Sequence[Base]] = {
    "signs 5-9": _OF_IMAGES,
    "digits 5-9": _OF_IMAGES,
    "3 intents": _OF_TEXTS,
    "few reviews": _OF_TEXTS,
    "women": _OF_TABLES,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--only", nargs="+", help="names of what is fine-tuned")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="fine-tunings of each base")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    spent: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made, service() as client:
        shelf = _Shelf(client, arguments.data, Path(made))
        print(
            f"{'target':14}{'base':36}{'advice':>17}{'fine-tuned':>19}{'near':>8}{'LogME':>8}{'H':>8}"
        )
        for target, bases in TARGETS.items():
            if arguments.only and target not in arguments.only:
                continue
            found, spent[target] = _compare(client, shelf, target, bases, arguments.seeds)
            for row in found:
                _show(row)
            rows += found
    taus = {name: agreement(rows, name) for name in CRITERIA}
    for name, values in taus.items():
        print(f"{name:18}" + "".join(f"{k}: {v:+.2f}   " for k, v in values.items()))
    share = sum(s["advice"] for s in spent.values()) / sum(s["tuning"] for s in spent.values())
    print(f"advice took {share:.2%} of the time of one fine-tuning of each base")
    return {"rows": rows, "tau": taus, "seconds": spent, "share": share}


class _Shelf:
    """Data sets and bases, made when they are first needed."""

    def __init__(self, client: Client, data: Path, made: Path) -> None:
        self._client, self._data, self._made = client, data, made
        self._datasets: dict[str, Answer] = {}
        self._models: dict[str, str] = {}

    def dataset(self, name: str) -> str:
        if name not in self._datasets:
            source = SOURCES[name]
            files = source.make(self._data, self._made)
            self._datasets[name] = self._client.upload(source.task, name, files, **source.options)
        found: str = self._datasets[name]["id"]
        return found

    def model(self, base: Base) -> str:
        name = base_name(base)
        if name not in self._models:
            task = {
                "name": SOURCES[base.source].task,
                "architecture": {"name": base.architecture},
            }
            dataset = self.dataset(base.source)
            job = self._client.submit(dataset, task=task, training=base.training)
            self._models[name] = self._client.wait(job["id"])["model"]
        return self._models[name]


def base_name(base: Base) -> str:
    """Such as "signs 0-4, cnn, 1 epoch"."""
    epochs = base.training.get("epochs")
    told = f", {epochs} epoch{'s' if epochs > 1 else ''}" if epochs else ""
    return f"{base.source}, {base.architecture}{told}"


def _compare(
    client: Client, shelf: _Shelf, target: str, bases: Sequence[Base], seeds: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """What is advised and what comes of it, for each base and for none; and the seconds of both."""
    dataset = shelf.dataset(target)
    models: dict[str | None, str] = {shelf.model(base): base_name(base) for base in bases}
    models[None] = "from scratch"
    asked = client.wait(client.advise(dataset, models=[m for m in models if m])["id"])
    rows, tuning = [], 0.0
    for told in asked["result"]["ranking"]:
        scores = []
        for seed in range(seeds):
            request = {"base": told["base"]} if told["base"] else {}
            job = client.wait(client.submit(dataset, training={"seed": seed}, **request)["id"])
            scores.append(job["metrics"]["test"][asked["result"]["metric"]])
            tuning += _seconds(job) / seeds
        rows.append(
            {
                "target": target,
                "base": models[told["base"]],
                **{name: told[name] for name in ("score_error", "epoch_seconds", *CRITERIA)},
                "fine_tuned": sum(scores) / seeds,
                "each": scores,
            }
        )
    return rows, {"advice": _seconds(asked), "tuning": tuning}


def _seconds(job: Answer) -> float:
    began, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def _show(row: Mapping[str, Any]) -> None:
    others = (row[name] for name in CRITERIA[1:])
    told = "".join(f"{'':>8}" if value is None else f"{value:8.3f}" for value in others)
    spread = f"({min(row['each']):.3f} to {max(row['each']):.3f})"
    print(
        f"{row['target']:14}{row['base']:36}{row['score']:8.4f} +- {row['score_error']:.4f}"
        f"{row['fine_tuned']:8.4f} {spread:18}{told}",
        flush=True,
    )


def agreement(rows: Sequence[Mapping[str, Any]], criterion: str) -> dict[str, float]:
    """Kendall's tau of a criterion and what fine-tuning came to: of each target's bases, and the mean of these."""
    found = {}
    for target in dict.fromkeys(row["target"] for row in rows):
        known = [r for r in rows if r["target"] == target and r["base"] != "from scratch"]
        told, came = ([row[name] for row in known] for name in (criterion, "fine_tuned"))
        found[target] = float(kendalltau(told, came).statistic)
    return {**found, "mean": sum(found.values()) / len(found)}
