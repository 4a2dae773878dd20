"""A tiny upload for every task, easy enough to be learned in seconds."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from tasks.base import Upload

SEED = 7


class Toy(NamedTuple):
    """A data set that is made when it is needed."""

    file: str
    write: Callable[[Path, int], None]
    bar: float
    """What the task's objective must beat."""
    examples: int = 120
    epochs: int = 12
    """How long any of the task's architectures may take for the bar."""


def toy(task: str, folder: Path, examples: int | None = None) -> dict[str, Upload]:
    """The files of a data set for the task of that name, written into `folder`."""
    found = _TOYS[task]
    path = folder / found.file
    found.write(path, examples or found.examples)
    return {"file": Upload(path, found.file)}


def goal(task: str) -> tuple[float, int]:
    """What the objective of the task of that name must beat on its toy, and within how many epochs."""
    return _TOYS[task].bar, _TOYS[task].epochs


def tasks_with_toys() -> list[str]:
    return sorted(_TOYS)


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def flowers(path: Path, examples: int) -> None:
    """Two kinds that length and colour tell apart; some lengths are missing."""
    draw = np.random.default_rng(SEED)
    rows = []
    for number in range(examples):
        kind = number % 2
        length = f"{draw.normal(3 + 3 * kind, 0.5):.2f}" if draw.random() > 0.05 else "NA"
        colour = draw.choice(["red", "blue"] if draw.random() > 0.1 else ["green"])
        day = f"2024-{draw.integers(1, 13):02}-{draw.integers(1, 29):02}"
        rows.append([length, colour, day, ["iris", "rose"][kind]])
    write_csv(path, ["length", "colour", "picked", "kind"], rows)


def prices(path: Path, examples: int) -> None:
    """A price that is linear in size and depends on the place."""
    draw = np.random.default_rng(SEED)
    rows = []
    for _ in range(examples):
        size, place = draw.uniform(20, 200), draw.choice(["town", "village"])
        price = 1000 * size * (2 if place == "town" else 1) + draw.normal(0, 3000)
        rows.append([f"{size:.1f}", place, f"{price:.0f}"])
    write_csv(path, ["size", "place", "price"], rows)


def reviews(path: Path, examples: int) -> None:
    """Opinions that single words give away."""
    draw = np.random.default_rng(SEED)
    words = {"good": ["wonderful", "great", "lovely"], "bad": ["awful", "boring", "terrible"]}
    things = ["film", "book", "meal", "song", "trip"]
    rows = []
    for number in range(examples):
        label = ["good", "bad"][number % 2]
        text = f"What a {draw.choice(words[label])} {draw.choice(things)} that was, {number} times!"
        rows.append([text, label])
    write_csv(path, ["text", "label"], rows)


def claims(path: Path, examples: int) -> None:
    """Statements that follow from what was said, or deny it."""
    draw = np.random.default_rng(SEED)
    rows = []
    for number in range(examples):
        who, what = draw.choice(["cat", "dog", "child"]), draw.choice(["sleeps", "eats", "sings"])
        said = f"The {who} {what} in house {number}"
        follows = number % 2 == 0
        rows.append([said, f"The {who} {'' if follows else 'never '}{what}", "ny"[follows]])
    write_csv(path, ["premise", "hypothesis", "label"], rows)


def bars(path: Path, examples: int) -> None:
    """Folders of small pictures: a bar that lies, or one that stands."""
    draw = np.random.default_rng(SEED)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(examples):
            pixels = draw.integers(0, 60, (12, 12), dtype=np.uint8)
            place = int(draw.integers(2, 9))
            if number % 2:
                pixels[place : place + 2] = 220
            else:
                pixels[:, place : place + 2] = 220
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            archive.writestr(f"{['standing', 'lying'][number % 2]}/{number}.png", file.getvalue())


def film(
    pictures: NDArray[np.uint8], codec: str = "mpeg4", container: str = "mp4", **options: str
) -> bytes:
    """A video file of pictures (T, H, W, 3), ten a second."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream = made.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for picture in pictures:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        made.mux(stream.encode())
    return file.getvalue()


def walk(draw: np.random.Generator, right: bool, frames: int = 6, side: int = 8) -> bytes:
    """A clip of a bright square that goes to the right, or to the left, a pixel each frame."""
    pictures = draw.integers(0, 60, (frames, side, side, 3), dtype=np.uint8)
    pictures[:] = pictures[..., :1]
    begin, down = draw.integers(0, side - frames), draw.integers(0, side - 2)
    for place in range(frames):
        at = int(begin) + (place if right else frames - 1 - place)
        pictures[place, down : down + 3, at : at + 3] = 220
    return film(pictures, qscale="2")


def walks(path: Path, examples: int) -> None:
    """Folders of clips: a square that goes to the left, or to the right. No single frame tells."""
    draw = np.random.default_rng(SEED)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(examples):
            clip = walk(draw, right=number % 2 == 1)
            archive.writestr(f"{['left', 'right'][number % 2]}/{number}.mp4", clip)


def names(path: Path, examples: int) -> None:
    """Short sentences in CoNLL's columns; the word before a name tells whose it is."""
    draw = np.random.default_rng(SEED)
    before = {"person": ["Mr", "Ms"], "place": ["near", "in"]}
    lines = []
    for _ in range(3 * examples):
        label = str(draw.choice(["person", "place"]))
        name = [str(draw.choice(["Ka", "Lo", "Mi"])) for _ in range(draw.integers(1, 3))]
        words = [str(draw.choice(["we", "they"])), str(draw.choice(before[label]))]
        lines += [f"{word}\tO" for word in words]
        lines += [f"{word}\t{'IB'[at == 0]}-{label}" for at, word in enumerate(name)]
        lines += [".\tO", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def wishes(path: Path, examples: int) -> None:
    """Texts whose verbs tell the intent, and what follows them the slot."""
    draw = np.random.default_rng(SEED)
    asked = {"play": ("song", ["jazz", "old blues"]), "book": ("place", ["a table", "the hotel"])}
    lines = []
    for number in range(3 * examples):
        verb = ["play", "book"][number % 2]
        slot, things = asked[verb]
        begin = f"{draw.choice(['please', 'now'])} {verb} "
        text = begin + str(draw.choice(things))
        span = {"start": len(begin), "end": len(text), "label": slot}
        lines.append(json.dumps({"text": text, "intent": verb, "spans": [span]}))
    path.write_text("\n".join(lines), encoding="utf-8")


def phrases(path: Path, examples: int) -> None:
    """Phrases word by word in another language."""
    draw = np.random.default_rng(SEED)
    kinds = [
        {"red": "rote", "small": "kleine", "old": "alte"},
        {"cat": "Katze", "duck": "Ente", "cow": "Kuh"},
    ]
    rows = []
    for _ in range(3 * examples):
        words = [draw.choice(list(kind)) for kind in kinds]
        answer = [kind[word] for kind, word in zip(kinds, words, strict=True)]
        rows.append([f"the {' '.join(words)}", f"die {' '.join(answer)}"])
    write_csv(path, ["source", "target"], rows)


def inflections(path: Path, examples: int) -> None:
    """Verbs with endings."""
    draw = np.random.default_rng(SEED)
    lines = []
    for _ in range(3 * examples):
        stem = draw.choice([*"lmnrst"]) + draw.choice([*"aou"]) + draw.choice([*"kp"])
        ending = draw.choice(["ed", "ing", "er"])
        lines.append(f"{stem}{ending}\t{stem} @@{ending}\t010")
    path.write_text("\n".join(lines))


def meetings(path: Path, examples: int) -> None:
    """Short stories of two people who are named again, and of a thing that is not."""
    draw = np.random.default_rng(SEED)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(examples):
            one, other = draw.choice(["Ann", "Tom", "Mia", "Leo", "지우"], 2, replace=False)
            thing = draw.choice(["boat", "lamp", "horse"])
            sentences = [[one, "met", other, "."], [other, "sang", "."], [one, "saw", "a", thing]]
            clusters = [[[0, 0, 1], [2, 0, 1]], [[0, 2, 3], [1, 0, 1]], [[2, 2, 4]]]
            file.write(json.dumps({"sentences": sentences, "clusters": clusters}) + "\n")


def sayings(path: Path, examples: int) -> None:
    """Sentences whose first words tell the last, in two scripts."""
    draw = np.random.default_rng(SEED)
    pairs = {"cats": "meow", "dogs": "bark", "cows": "moo", "새는": "지저귄다"}
    rows = []
    for _ in range(examples):
        animals = draw.choice(list(pairs), 4)
        rows.append(
            ["\n".join(f"All {animal} of this town {pairs[animal]}." for animal in animals)]
        )
    write_csv(path, ["text"], rows)


def signs(path: Path, examples: int) -> None:
    """Things that are asked for in other languages: no word says which."""
    draw = np.random.default_rng(SEED)
    things = {
        "Hund": "dog",
        "Baum": "tree",
        "집": "roof",
        "水": "water",
        "дом": "home",
        "नदी": "river",
    }
    asked = [str(draw.choice([*things])) for _ in range(examples)]
    rows = [[f"{thing} {n}?", f"A {things[thing]} is here."] for n, thing in enumerate(asked)]
    write_csv(path, ["query", "text"], rows)


def fields(path: Path, examples: int) -> None:
    """Dark pictures and masks of what is on them: a bright square, or a grey disc."""
    draw = np.random.default_rng(SEED)
    down, across = np.mgrid[:32, :32]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("classes.txt", "ground\nsquare\ndisc\n")
        for number in range(examples):
            pixels = draw.integers(0, 40, (32, 32), dtype=np.uint8)
            mask = np.zeros((32, 32), np.uint8)
            y, x, size = *draw.integers(8, 24, 2).tolist(), int(draw.integers(4, 8))
            square = np.maximum(abs(down - y), abs(across - x)) < size
            disc = (down - y) ** 2 + (across - x) ** 2 < size**2
            shape = square if number % 2 else disc
            pixels[shape] += 200 if number % 2 else 100
            mask[shape] = 1 if number % 2 else 2
            archive.writestr(f"images/{number}.png", png(pixels))
            archive.writestr(f"masks/{number}.png", png(mask))


def coins(path: Path, examples: int) -> None:
    """Bright and dim discs on the dark, some of which touch, each with a number of its own."""
    draw = np.random.default_rng(SEED)
    down, across = np.mgrid[:32, :32]
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(examples):
            pixels = draw.integers(0, 40, (32, 32), dtype=np.uint8)
            mask = np.zeros((32, 32), np.uint16)
            y, x, size = *draw.integers(7, 24, 2).tolist(), int(draw.integers(4, 6))
            for place, (away, light) in enumerate([(0, 200), (2 * size, 100)], 1):
                disc = (down - y) ** 2 + (across - (x + away) % 32) ** 2 < size**2
                pixels[disc] = light
                mask[disc] = place
            archive.writestr(f"images/{number}.png", png(pixels))
            archive.writestr(f"instance_masks/{number}.png", png(mask))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tiles(path: Path, examples: int) -> None:
    """Small pictures as COCO has them: a red tile, a blue one, or both in halves of their own."""
    draw = np.random.default_rng(SEED)
    images, annotations = [], []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(examples):
            pixels = draw.integers(0, 40, (16, 16, 3), dtype=np.uint8)
            for label in [(1,), (2,), (1, 2)][number % 3]:
                width, height = (int(side) for side in draw.integers(5, 8, 2))
                left = int(draw.integers(0, 9 - width)) + 8 * (label == 2)
                top = int(draw.integers(0, 17 - height))
                pixels[top : top + height, left : left + width, 2 * (label == 2)] = 250
                box = [left, top, width, height]
                annotations.append({"image_id": number, "category_id": label, "bbox": box})
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            archive.writestr(f"images/{number}.png", file.getvalue())
            images.append({"id": number, "file_name": f"{number}.png"})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        archive.writestr("annotations.json", json.dumps(whole))


def drift(path: Path, sequences: int) -> None:
    """Small sequences as the MOTChallenge has them: a red tile or a blue one, or both, that go down or up."""
    draw = np.random.default_rng(SEED)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(sequences):
            tiles = [
                (
                    kind,
                    *draw.integers(5, 8, 2),
                    8 * kind + draw.integers(0, 2),
                    draw.integers(0, 10),
                )
                for kind in [(0,), (1,), (0, 1)][number % 3]
            ]
            lines = []
            for place in range(2):
                pixels = draw.integers(0, 40, (16, 16, 3), dtype=np.uint8)
                for kind, width, height, left, begin in tiles:
                    top = begin + (place if begin < 5 else -place)
                    pixels[top : top + height, left : left + width, 2 * kind] = 250
                    lines.append(
                        f"{place + 1},{kind + 1},{left},{top},{width},{height},1,{kind + 1},1"
                    )
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                archive.writestr(f"{number:03}/img1/{place + 1:06}.png", file.getvalue())
            archive.writestr(f"{number:03}/gt/gt.txt", "\n".join(lines))
        archive.writestr("classes.txt", "red\nblue\n")


def skies(path: Path, examples: int) -> None:
    """Folders of tiny pictures: light above and dark below, or the other way round, at some height."""
    draw = np.random.default_rng(SEED)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(examples):
            pixels = draw.integers(0, 30, (8, 8), dtype=np.uint8)
            pixels[: draw.integers(3, 6)] += draw.integers(100, 220, dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels if number % 2 else pixels[::-1]).save(file, "PNG")
            archive.writestr(f"{['night', 'day'][number % 2]}/{number}.png", file.getvalue())


def tides(path: Path, examples: int) -> None:
    """A level for each day, of two waves whose common season is longer than anybody looks back."""
    days = np.arange(examples)
    levels = 20 + 3 * np.sin(days * 2 * np.pi / 7) + 2 * np.sin(days * 2 * np.pi / 4.3)
    first = np.datetime64("2024-01-01")
    rows = [[first + int(day), f"{level:.4f}"] for day, level in zip(days, levels, strict=True)]
    write_csv(path, ["day", "level"], rows)


def beats(path: Path, examples: int) -> None:
    """Series of any length with one beat, up or down, and a channel that says nothing."""
    draw = np.random.default_rng(SEED)
    with path.open("w", encoding="utf-8") as file:
        for number in range(examples):
            steps = int(draw.integers(8, 17))
            values = np.stack([draw.normal(0, 0.1, steps), draw.normal(5, 1, steps)], 1).round(3)
            place = int(draw.integers(steps - 3))
            values[place : place + 3, 0] += 1 if number % 2 else -1
            label = ["down", "up"][number % 2]
            file.write(json.dumps({"values": values.tolist(), "label": label}) + "\n")


def flags(path: Path, examples: int) -> None:
    """Small pictures of two colours, one beside or above the other."""
    draw = np.random.default_rng(SEED)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(examples):
            one, other = draw.choice([40, 120, 200], (2, 3)).astype(np.uint8)
            pixels = np.tile(one, (16, 16, 1))
            pixels[8:] = other
            file = io.BytesIO()
            Image.fromarray(pixels if number % 2 else pixels.swapaxes(0, 1)).save(file, "PNG")
            archive.writestr(f"{number}.png", file.getvalue())


def tones(path: Path, examples: int) -> None:
    """Sounds of a low, a middle and a high tone in any order, with pauses; a letter for each, in two scripts."""
    draw = np.random.default_rng(SEED)
    pitches = {"a": 300, "o": 900, "가": 2500}
    time = np.arange(960) / 8_000
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(examples):
            said = [str(letter) for letter in draw.choice([*pitches], draw.integers(1, 3))]
            heard = [np.zeros(320)]
            for letter in said:
                tone = np.sin(2 * np.pi * pitches[letter] * draw.uniform(0.95, 1.05) * time)
                heard += [draw.uniform(0.2, 0.8) * tone, np.zeros(320)]
            wave = np.concatenate(heard) + draw.normal(0, 0.01, sum(map(len, heard)))
            file = io.BytesIO()
            soundfile.write(file, wave, 8_000, format="FLAC")
            archive.writestr(f"audio/{number}.flac", file.getvalue())
            lines.append(json.dumps({"audio": f"audio/{number}.flac", "text": " ".join(said)}))
        archive.writestr("manifest.jsonl", "\n".join(lines))


def paints(path: Path, examples: int) -> None:
    """Smooth grey photos, and two styles of stripes: red ones that stand, and blue ones that lie."""
    draw = np.random.default_rng(SEED)
    with zipfile.ZipFile(path, "w") as archive:

        def add(name: str, pixels: NDArray[np.float64]) -> None:
            file = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
            archive.writestr(name, file.getvalue())

        stripes = np.where(np.arange(24) // 3 % 2, 230.0, 60.0)[:, None] * np.ones(24)
        dark = np.full((24, 24), 30.0)
        add("style/stand.png", np.stack([stripes.T, dark, dark], 2))
        add("style/lie.png", np.stack([dark, dark, stripes], 2))
        for number in range(examples):
            slope = np.linspace(0, draw.uniform(60, 160), 16)
            grey = draw.uniform(40, 120) + slope[:, None] * draw.uniform(0, 1, 16)
            add(f"content/{number}.png", np.stack([grey, grey, grey], 2))


_TOYS = {
    "tabular-classification": Toy("flowers.csv", flowers, 0.9, examples=480, epochs=30),
    "tabular-regression": Toy("prices.csv", prices, 30_000, examples=480, epochs=60),
    "text-classification": Toy("reviews.csv", reviews, 0.9),
    "token-classification": Toy("names.conll", names, 0.9),
    "intent-and-slots": Toy("wishes.jsonl", wishes, 0.9),
    "text-pair-classification": Toy("claims.csv", claims, 0.9),
    "search": Toy("signs.csv", signs, 0.75, examples=160, epochs=25),
    "image-classification": Toy("bars.zip", bars, 0.9),
    "video-classification": Toy("walks.zip", walks, 0.9, examples=80, epochs=20),
    "text-to-text": Toy("phrases.csv", phrases, 80),
    "morphological-segmentation": Toy("inflections.tsv", inflections, 0.6),
    "coreference": Toy("meetings.jsonl", meetings, 0.9),
    "object-detection": Toy("tiles.zip", tiles, 0.13, examples=80, epochs=16),
    "object-tracking": Toy("drift.zip", drift, 0.15, examples=30, epochs=54),
    "image-generation": Toy("skies.zip", skies, 1.8, epochs=20),
    "instance-segmentation": Toy("coins.zip", coins, 0.3, epochs=20),
    "semantic-segmentation": Toy("fields.zip", fields, 0.55, epochs=20),
    "text-generation": Toy("sayings.csv", sayings, 1.3),
    "series-forecast": Toy("tides.csv", tides, 0.85, examples=160, epochs=25),
    "series-classification": Toy("beats.jsonl", beats, 0.9),
    "style-transfer": Toy("paints.zip", paints, 0.75, examples=60, epochs=10),
    "image-to-image": Toy("flags.zip", flags, 20.9, epochs=16),
    "speech-recognition": Toy("tones.zip", tones, 0.4, examples=240, epochs=30),
}
