"""The demonstration: a new user's first quarter of an hour with the service, done by itself."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from cli.client import Client, Refused, ready
from cli.digits import Digits, digits, few_per_digit, image_folder, png
from cli.processes import GRACE_SECONDS, unusable

console = Console(highlight=False)
HOST = "127.0.0.1"
LOG = "service.log"


def show(data: Path, port: int, *, once: bool) -> int:
    """Run the demonstration; returns an exit status."""
    if reason := unusable(HOST, port):
        console.print(f"[red]{reason}[/]")
        return 2
    try:
        return _run(data, port, once=once)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130 if once else 0


def _run(data: Path, port: int, *, once: bool) -> int:
    url, key = f"http://{HOST}:{port}", _key(data)
    with _service(data, port, key) as service:
        if not ready(url, lambda: service.poll() is None):
            console.print((data / LOG).read_text()[-4_000:], markup=False)
            console.print("[red]The service did not start; what it said is above.[/]")
            return 1
        client = Client(url, key)
        try:
            _tour(client)
        except Refused as error:
            console.print(f"[red]{error}[/]")
            return 1
        finally:
            client.close()
        _goodbye(data, url, key)
        if once:
            return 0
        console.print("Serving until Ctrl-C ...")
        return service.wait()


def _tour(client: Client) -> None:
    seen, held_out = digits()
    with tempfile.TemporaryDirectory() as folder:
        model = _train_on_digits(client, Path(folder), seen)
        _predict_one(client, model, held_out)
        _transfer(client, Path(folder), model, held_out)


def _train_on_digits(client: Client, folder: Path, seen: Digits) -> str:
    console.rule("1. Train on handwritten digits")
    upload = image_folder(folder / "digits.zip", seen.images, map(str, seen.digits))
    dataset = client.upload("image-classification", "digits", {"file": upload})
    splits = ", ".join(f"{n} {name}" for name, n in dataset["splits"].items())
    console.print(f"Uploaded {dataset['id']}: {splits} images, checked and ready.")
    task = {"name": "image-classification", "architecture": {"name": "cnn"}}
    job = _follow(client, client.submit(dataset["id"], name="digits", task=task))
    accuracy = job["metrics"]["validation"]["accuracy"]
    console.print(f"Trained [bold]{job['model']}[/]: validation accuracy {accuracy:.4f}.")
    return str(job["model"])


def _predict_one(client: Client, model: str, held_out: Digits) -> None:
    console.rule("2. Predict an image it has never seen")
    image, digit = held_out.images[0], held_out.digits[0]
    console.print(_drawing(image))
    prediction = client.predict_image(model, png(image))
    label = prediction["label"]
    console.print(
        f"{model} says [bold]{label}[/] ({prediction['scores'][label]:.1%} sure); it is a {digit}."
    )


def _transfer(client: Client, folder: Path, base: str, held_out: Digits) -> None:
    console.rule("3. Transfer: odd or even, from 40 images")
    few, rest = few_per_digit(held_out, 4)
    files = {
        name: image_folder(folder / f"{name}.zip", part.images, _parity(part))
        for name, part in (("train", few), ("validation", rest))
    }
    dataset = client.upload("image-classification", "parity", files)
    request: dict[str, Any] = {
        "task": {"name": "image-classification", "architecture": {"name": "cnn"}},
        "training": {"epochs": 30, "seed": 1},
    }
    scratch = _follow(client, client.submit(dataset["id"], name="parity-scratch", **request))
    request["transfer"] = {"trainable_blocks": 0}
    del request["task"]  # the base brings its own
    taught = _follow(client, client.submit(dataset["id"], name="parity", base=base, **request))
    table = Table("trained", "model", "accuracy on 320 other images")
    before, after = (j["metrics"]["validation"]["accuracy"] for j in (scratch, taught))
    table.add_row("from scratch", scratch["model"], f"{before:.3f}")
    table.add_row(f"from {base}", taught["model"], f"{after:.3f}")
    console.print(table)
    console.print(f"The transfer gained {100 * (after - before):+.1f} points.")


def _parity(part: Digits) -> list[str]:
    return ["odd" if digit % 2 else "even" for digit in part.digits]


def _follow(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Show a job's progress until it has ended. Raises Refused when it did not succeed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[facts]}"),
    )
    with Progress(*columns, console=console) as progress:
        line = progress.add_task(job["name"], total=100, facts=job["status"])
        for now in client.watch(job["id"]):
            percent = (now["progress"] or {}).get("percent") or 0
            progress.update(line, completed=percent, facts=_facts(client, now))
            job = now
    if job["status"] != "succeeded":
        message = (job["error"] or {}).get("message", "no reason was given")
        raise Refused(f"{job['name']} {job['status']}: {message}")
    return job


def _facts(client: Client, job: dict[str, Any]) -> str:
    """One line: status or epoch, the newest loss and validation metric, and the time left."""
    if job["status"] == "queued":
        return f"queued: {job.get('waiting') or 'starting'}"
    progress, curves = job["progress"] or {}, client.curves(job["id"], points=2)
    facts = [f"epoch {progress.get('epoch', 0)}/{progress.get('epochs', '?')}"]
    for name, shown in (("train/loss", "loss"), ("validation/accuracy", "validation accuracy")):
        if curve := curves.get(name):
            facts.append(f"{shown} {curve['values'][-1]:.3f}")
    if (left := progress.get("eta_seconds")) is not None and job["status"] == "running":
        facts.append(f"{left:.0f} s left")
    return "  ".join(facts)


def _drawing(image: np.ndarray) -> str:
    shades = " .:-=+*#%@"
    return "\n".join(
        "  " + "".join(2 * shades[int(value) * 9 // 255] for value in row) for row in image
    )


def _goodbye(data: Path, url: str, key: str) -> None:
    console.rule("Now you")
    console.print(
        f"Docs and dashboard: [bold]{url}/docs[/]\nAPI key:            [bold]{key}[/]\nThe service's log:  {data / LOG}"
    )


def _key(data: Path) -> str:
    """This demonstration's admin key: made at its first run, the same at every later one."""
    path = data / "demo.key"
    if not path.exists():
        data.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(f"my_{secrets.token_urlsafe(32)}")
    return path.read_text()


@contextmanager
def _service(data: Path, port: int, key: str) -> Iterator[subprocess.Popen[bytes]]:
    """The whole service as a child process, stopped at the end however the end comes."""
    command = [sys.executable, "-m", "cli.main", "up", "--data", str(data), "--port", str(port)]
    environment = {**os.environ, "MODELYARD_ADMIN_KEY": key}
    signal.signal(signal.SIGTERM, _interrupt)
    with (data / LOG).open("w") as log:
        service = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=log, stderr=log
        )
        try:
            yield service
        finally:
            service.terminate()
            service.wait(GRACE_SECONDS + 10)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
