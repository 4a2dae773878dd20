"""Quality: data sets trained through the service over HTTP, each beside a baseline on the same split.

`--data DIR` holds one folder per data set in the upload formats, at any depth, each with train.* and
test.* (and valid.*), or what goes into one archive: the files of a corpus for search, or manifests beside
the `audio` that they are about. Without it, scikit-learn's digits are used.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import make_archive
from typing import Any, NamedTuple
from zipfile import ZipFile

from bench._service import service
from cli.client import Client
from cli.digits import digits, image_folder


class Case(NamedTuple):
    """One data set, how to read it, and what is trained on it."""

    name: str
    folder: str
    task: str
    metric: str
    baseline: float
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    architectures: tuple[str | None, ...] = (None,)
    """None: whatever the service chooses."""
    prefix: str = ""
    """What the names of its files begin with, where others lie in the same folder."""
    cuts: tuple[int, ...] = ()
    """Where the train, validation and test rows of its series.csv end; if none, the service cuts it."""
    fields: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """What is asked of the task."""


CASES = [
    Case(
        "adult", "adult", "tabular-classification", "accuracy", 0.8515,
        {"column_mapping": {"target": "income"}}, (None, "mlp", "random-forest", "linear"),
    ),
    Case(
        "abalone", "abalone", "tabular-regression", "mae", 1.545,
        {"column_mapping": {"target": "rings"}}, (None, "mlp", "random-forest"),
    ),
    Case(
        "nsmc", "nsmc_ko", "text-classification", "accuracy", 0.8374,
        {}, (None, "bag-of-embeddings", "bag-of-ngrams", "text-cnn", "gru"),
    ),
    Case(
        "snips", "snips_en", "text-classification", "accuracy", 0.9843,
        {"column_mapping": {"label": "intent"}},
    ),
    Case("wnut17", "wnut17_en", "token-classification", "f1", 0.106),
    Case("ewt", "ud_english_ewt", "token-classification", "accuracy", 0.9188),
    Case("stac-segments", "disrpt_eng_sdrt_stac", "token-classification", "f1", 0.951, {}, (None,), "segments."),
    Case("snips-intents", "snips_en", "intent-and-slots", "intent_accuracy", 0.9843),
    Case("snips-slots", "snips_en", "intent-and-slots", "slot_f1", 0.7446),
    Case("sick", "sick_en", "text-pair-classification", "accuracy", 0.8378),
    Case(
        "stac", "disrpt_eng_sdrt_stac", "text-pair-classification", "accuracy", 0.497,
        {}, (None,), "relations.",
    ),
    Case("multi30k", "multi30k_en_de", "text-to-text", "bleu", 7.6),
    Case("dialogsum", "dialogsum_en", "text-to-text", "rougeL", 23.9),
    Case("morphemes", "sigmorphon22_english_words", "morphological-segmentation", "f1", 0.643),
    Case("litbank", "litbank_novels_en", "text-generation", "bits_per_character", 2.21),
    Case(
        "sign-digits", "sign_language_digits", "image-classification", "accuracy", 0.84,
        {}, (None, "cnn", "convnext", "vit"),
    ),
    Case("sign-clips", "sign_digit_clips", "video-classification", "accuracy", 0.70),
    Case("raccoons", "raccoon_coco", "object-detection", "ap50", 0.478),
    Case("sprites", "sprites_mot", "object-tracking", "mota", 0.864),
    Case("camvid", "camvid11", "semantic-segmentation", "miou", 0.285),
    Case("nuclei", "nuclei_dsb2018_coco", "instance-segmentation", "ap50", 0.586),
    Case("litbank-coref", "litbank_en", "coreference", "conll_f1", 0.703),
    Case(
        "airline", "airline_passengers", "series-forecast", "mase", 0.950,
        {"split": {"fraction": 0.1, "test_fraction": 0.2}},
    ),
    Case(
        "etth1", "etth1", "series-forecast", "mase", 1.634,
        {"column_mapping": {"target": "OT"}}, cuts=(8640, 11_520, 14_400),
    ),
    Case("digit-strings", "fsdd_digit_strings", "speech-recognition", "wer", 0.172),
    # That of photos left as they are.
    Case("paintings", "neural_style_inputs", "style-transfer", "loss_ratio", 1.0),
    Case("cranfield", "cranfield_en", "search", "ndcg_at_10", 0.374),
    *(
        Case(
            name, "bsds500_images", "image-to-image", "psnr", baseline,
            fields={"degradation": {"name": name}},
        )
        for name, baseline in (
            ("colorization", 23.97), ("denoising", 27.62), ("inpainting", 20.41),
            ("super-resolution", 29.69), ("autoencoding", 23.48),
        )
    ),
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder with one data set per folder")
    parser.add_argument("--only", nargs="+", help="names of data sets")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder, service() as client:
        made = Path(folder)
        cases = found(arguments.data, made) if arguments.data else [_digits(made)]
        print(
            f"{'data':15}{'task':28}{'architecture':24}{'metric':20}"
            f"{'baseline':>9}{'here':>9}{'minutes':>9}"
        )
        for case, files in cases:
            if arguments.only and case.name not in arguments.only:
                continue
            for row in _train(client, case, files):
                rows.append(row)
                print(
                    f"{row['data']:15}{row['task']:28}{row['architecture']:24}{row['metric']:20}"
                    f"{row['baseline']:9.4f}{row['value']:9.4f}{row['minutes']:9.2f}",
                    flush=True,
                )
    return {"rows": rows}


def _train(client: Client, case: Case, files: dict[str, Path]) -> Iterator[dict[str, Any]]:
    dataset = client.upload(case.task, case.name, files, **case.options)
    for architecture in case.architectures:
        task: dict[str, Any] = {"name": case.task, **case.fields}
        if architecture:
            task["architecture"] = {"name": architecture}
        started = time.monotonic()
        job = client.wait(client.submit(dataset["id"], task=task)["id"])
        metrics = job["metrics"]
        yield {
            "data": case.name,
            "task": case.task,
            "architecture": job["resolved"]["task"]["architecture"]["name"]
            + ("" if architecture else " (auto)"),
            "metric": case.metric,
            "baseline": case.baseline,
            "value": metrics.get("test", metrics["validation"])[case.metric],
            "metrics": metrics,
            "minutes": (time.monotonic() - started) / 60,
        }


def found(data: Path, made: Path) -> list[tuple[Case, dict[str, Path]]]:
    """The data sets in a folder; what goes into one file is put into one in `made`."""
    there = []
    for case in CASES:
        for folder in data.rglob(case.folder):
            named = {"train": "train", "valid": "validation", "test": "test"}
            files = {
                split: path
                for path in sorted(folder.iterdir())
                if path.stem.startswith(case.prefix)
                and (split := named.get(path.stem.removeprefix(case.prefix))) is not None
            }
            in_one = (folder / "corpus.jsonl").exists() or (folder / "audio").is_dir()
            if in_one or case.task == "object-tracking":
                files = {"file": Path(make_archive(str(made / case.name), "zip", folder))}
            if (series := folder / "series.csv").exists():
                files = _cut(series, case, made) if case.cuts else {"file": series}
            if case.task == "style-transfer":
                files = _with_photos(folder / "images.zip", data, made)
            there.append((case, files))
    return there


def _with_photos(styles: Path, data: Path, made: Path) -> dict[str, Path]:
    """Styles with photos of another folder to learn from, and more photos to measure by."""
    photos = next(data.rglob("bsds500_images"))
    train = made / "styles.zip"
    with (
        ZipFile(train, "w") as whole,
        ZipFile(styles) as some,
        ZipFile(photos / "train.zip") as many,
    ):
        for name in some.namelist():
            if name.startswith("style/"):
                whole.writestr(name, some.read(name))
        for name in many.namelist():
            whole.writestr(f"content/{Path(name).name}", many.read(name))
    return {
        "train": train,
        "validation": photos / "valid.zip",
        "test": photos / "test.zip",
    }


def _cut(series: Path, case: Case, made: Path) -> dict[str, Path]:
    """Files of the rows up to each cut, in the order of time."""
    header, *rows = series.read_text().splitlines()
    files, start = {}, 0
    for split, stop in zip(("train", "validation", "test"), case.cuts, strict=True):
        files[split] = made / f"{case.name}.{split}.csv"
        files[split].write_text("\n".join([header, *rows[start:stop]]))
        start = stop
    return files


def _digits(folder: Path) -> tuple[Case, dict[str, Path]]:
    train, test = digits()
    files = {
        name: image_folder(folder / f"{name}.zip", part.images, map(str, part.digits))
        for name, part in (("train", train), ("test", test))
    }
    # Scikit-learn's own support vector example reaches 0.97 on the same halves-in-order split.
    case = Case("digits", "", "image-classification", "accuracy", 0.97, {}, ("cnn", "resnet"))
    return case, files
