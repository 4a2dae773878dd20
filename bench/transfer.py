"""Transfer: what a model learned before is worth to one that has little data, beside the same network from scratch.

`--data DIR` holds the data sets of `bench quality`. Each is cut into two that share no example: one that a base learns
from, and one of which a tenth is learned from.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

from bench._image_folders import with_labels
from bench._service import service
from cli.client import ENDED, Client, Refused

SHARE = 0.1
SEEDS = 3
Files = dict[str, Path]


class Pair(NamedTuple):
    """A data set cut in two, and what is learned on either part."""

    name: str
    modality: str
    folder: str
    task: str
    cut: Callable[[Path, Path], tuple[Files, Files]]
    """From the folder, files of the base and of the target, written into another folder."""
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    base_training: dict[str, Any] = {}  # noqa: RUF012 - never changed


def women_and_men(folder: Path, made: Path) -> tuple[Files, Files]:
    """People of the census: men for the base."""
    base = {"train": _rows(folder / "train.csv", made / "men.csv", "Male")}
    names = ("train", "test")
    return base, {n: _rows(folder / f"{n}.csv", made / f"women.{n}.csv", "Female") for n in names}


def _rows(source: Path, target: Path, sex: str) -> Path:
    with source.open(newline="") as file, target.open("w", newline="") as kept:
        read = csv.DictReader(file)
        write = csv.DictWriter(kept, read.fieldnames or [])
        write.writeheader()
        write.writerows(row for row in read if row["sex"].strip() == sex)
    return target


def genres(folder: Path, made: Path) -> tuple[Files, Files]:
    """Parts of speech: e-mails, weblogs, newsgroups and answers for the base, then reviews."""
    base = {
        part: _sentences(folder / f"{name}.conllu", made / f"others.{name}.conllu", reviews=False)
        for part, name in (("train", "train"), ("validation", "valid"))
    }
    target = {
        name: _sentences(folder / f"{name}.conllu", made / f"reviews.{name}.conllu", reviews=True)
        for name in ("train", "test")
    }
    return base, target


def _sentences(source: Path, target: Path, *, reviews: bool) -> Path:
    blocks = source.read_text("utf-8").strip().split("\n\n")
    kept = [block for block in blocks if ("# sent_id = reviews-" in block) is reviews]
    target.write_text("\n\n".join([*kept, ""]), "utf-8")
    return target


def intents(folder: Path, made: Path) -> tuple[Files, Files]:
    """Requests to an assistant: four intents for the base, three others."""
    named = {"train": "train", "validation": "valid", "test": "test"}
    lines = {part: (folder / f"{name}.jsonl").read_text("utf-8") for part, name in named.items()}
    told = {part: [json.loads(line) for line in text.splitlines()] for part, text in lines.items()}
    known = sorted({line["intent"] for line in told["train"]})[:4]
    some, others = (
        {part: made / f"{name}.{part}.jsonl" for part in named} for name in ("some", "others")
    )
    for part, each in told.items():
        for files, wanted in ((some, True), (others, False)):
            kept = [line for line in each if (line["intent"] in known) is wanted]
            files[part].write_text("\n".join(map(json.dumps, kept)), "utf-8")
    return some, others


def low_and_high_signs(folder: Path, made: Path) -> tuple[Files, Files]:
    """Images of hands that show a digit: zero to four for the base."""
    low, high = (
        {
            name: with_labels(folder / f"{name}.zip", made / f"{part}.{name}.zip", labels)
            for name in ("train", "test")
        }
        for part, labels in (("low", "01234"), ("high", "56789"))
    )
    return low, high


def speakers(folder: Path, made: Path) -> tuple[Files, Files]:
    """Spoken digits: three speakers for the base; two others to learn from, and one more to be tested by."""
    told = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()]
        for name in ("train", "valid", "test")
    }
    known = sorted({line["speaker"] for line in told["train"]})
    held = {line["speaker"] for line in told["test"]}
    base = _sounds(folder, made / "some.zip", told, known[:3])
    return {"file": base}, {"file": _sounds(folder, made / "others.zip", told, {*known[3:], *held})}


def _sounds(
    folder: Path, target: Path, told: Mapping[str, list[Any]], speakers: Collection[str]
) -> Path:
    with ZipFile(target, "w") as packed:
        for name, lines in told.items():
            kept = [line for line in lines if line["speaker"] in speakers]
            if kept:
                packed.writestr(f"{name}.jsonl", "\n".join(map(json.dumps, kept)))
            for line in kept:
                packed.write(folder / line["audio"], line["audio"])
    return target


PAIRS = [
    Pair(
        "women-from-men",
        "tables",
        "adult",
        "tabular-classification",
        women_and_men,
        options={"column_mapping": {"target": "income"}},
    ),
    Pair(
        "reviews-from-other-genres",
        "text",
        "ud_english_ewt",
        "token-classification",
        genres,
        base_training={"epochs": 5},
    ),
    Pair(
        "intents-from-other-intents",
        "text",
        "snips_en",
        "text-classification",
        intents,
        options={"column_mapping": {"label": "intent"}},
    ),
    Pair(
        "high-signs-from-low",
        "image",
        "sign_language_digits",
        "image-classification",
        low_and_high_signs,
    ),
    Pair(
        "digits-of-other-speakers",
        "speech",
        "fsdd_digit_strings",
        "speech-recognition",
        speakers,
        base_training={"epochs": 45},
    ),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--only", nargs="+", help="names of pairs, or modalities")
    parser.add_argument(
        "--rate", type=float, help="backbone_learning_rate; the service's own if left out"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings of each side")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    pairs = {}
    with tempfile.TemporaryDirectory() as made, service() as client:
        print(f"{'pair':28}{'modality':10}{'metric':12}{'with':>8}{'without':>9}{'gain':>17}  min")
        for pair, folder in _found(arguments.data, arguments.only):
            row = _compare(client, pair, folder, Path(made), arguments.seeds, arguments.rate)
            pairs[pair.name] = row
            error = "" if row["gain_error"] is None else f" +- {row['gain_error']:.4f}"
            print(
                f"{pair.name:28}{pair.modality:10}{row['metric']:12}{row['with']:8.4f}"
                f"{row['without']:9.4f}{row['gain']:+8.4f}{error:9}{row['minutes']:5.1f}",
                flush=True,
            )
    return {"share": SHARE, "pairs": pairs}


def _found(data: Path, only: Collection[str] | None) -> Iterator[tuple[Pair, Path]]:
    for pair in PAIRS:
        if not only or {pair.name, pair.modality} & set(only):
            yield pair, next(data.rglob(pair.folder))


def _compare(
    client: Client, pair: Pair, folder: Path, made: Path, seeds: int, rate: float | None
) -> dict[str, Any]:
    """Train the base, and have the service compare."""
    started = time.monotonic()
    base, target = pair.cut(folder, made)
    first = client.upload(pair.task, f"{pair.name}-base", base, **pair.options)
    learned = client.submit(first["id"], training=pair.base_training)
    model = client.wait(learned["id"])["model"]
    data = client.upload(pair.task, pair.name, target, **pair.options)
    compare = {"shares": [SHARE], "seeds": seeds}
    transfer = {} if rate is None else {"backbone_learning_rate": rate}
    sweep = client.sweep(data["id"], base=model, transfer=transfer, compare=compare)
    gains = _ended(client, sweep["id"])["gains"]
    (row,) = gains["rows"]
    return {
        "modality": pair.modality,
        "metric": gains["metric"],
        "split": gains["split"],
        "with": row["with_transfer"],
        "without": row["from_scratch"],
        "gain": row["gain"],
        "gain_error": row["gain_error"],
        "seeds": row["seeds"],
        "examples": round(SHARE * data["splits"]["train"]),
        "rate": rate,
        "minutes": (time.monotonic() - started) / 60,
    }


def _ended(client: Client, sweep_id: str) -> dict[str, Any]:
    """The sweep once it has ended. Raises Refused when it did not succeed."""
    while (sweep := client.sweep_of(sweep_id))["status"] not in ENDED:
        time.sleep(0.5)
    if sweep["status"] != "succeeded":
        raise Refused(f"sweep {sweep_id} {sweep['status']}: {sweep['error']}")
    return sweep
