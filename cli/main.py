"""The command `modelyard`: one word for each part of the service, and a demonstration of the whole."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trains and fine-tunes PyTorch models over HTTP, and serves them.",
)

Data = Annotated[
    Path, typer.Option("--data", help="Where the database, uploads and caches are kept.")
]
Port = Annotated[int, typer.Option("--port", min=1, max=65_535, help="Where to listen.")]
Host = Annotated[str, typer.Option("--host", help="The address to listen on.")]
DEFAULT_DATA = Path(".modelyard")


@app.command()
def up(data: Data = DEFAULT_DATA, port: Port = 8000, host: Host = "127.0.0.1") -> None:
    """Run everything on this machine: migrations, API, and a worker."""
    from cli.processes import serve

    raise SystemExit(serve(data, host, port))


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the predictions.")] = False,
    port: Port = 8000,
    data: Data = DEFAULT_DATA / "demo",
) -> None:
    """Train on real data, watch, predict, transfer; then keep serving until Ctrl-C."""
    from cli.demo import show

    raise SystemExit(show(data, port, once=once))


@app.command()
def api(
    host: Annotated[str | None, typer.Option("--host", help="The address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="Where to listen.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes that share the port.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", hidden=True)] = False,
) -> None:
    """Run the web side. Settings come from MODELYARD_... variables, unless they are given here."""
    from api.settings import ApiSettings
    from cli.processes import share_port
    from store.settings import read

    asked = {"host": host, "port": port, "processes": processes}
    given = {name: value for name, value in asked.items() if value is not None}
    settings = read(ApiSettings, "api", **given)
    if settings.processes > 1 and not shared:
        options = [f"--{name}={value}" for name, value in given.items()]
        raise SystemExit(share_port(settings.processes, options))
    from api.server import serve

    serve(settings)


@app.command()
def worker(
    queues: Annotated[
        str,
        typer.Option("--queues", help="Comma-separated; empty: what this machine's devices are."),
    ] = "",
) -> None:
    """Run a worker: one trainer per device. Settings come from MODELYARD_... variables."""
    import os
    import sys

    if queues:
        os.environ["MODELYARD_QUEUES"] = queues
    # The module, not a function of it: trainers are forked from a process whose main module is light.
    os.execv(sys.executable, [sys.executable, "-m", "worker"])


@app.command()
def reconciler() -> None:
    """Run the loop that takes back the jobs of dead workers, by itself."""
    import os
    import sys

    os.execv(sys.executable, [sys.executable, "-m", "worker.reconciler"])


@app.command()
def migrate() -> None:
    """Bring the database to this version's tables."""
    from store.migrate import upgrade
    from store.settings import StoreSettings

    settings = StoreSettings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database)


if __name__ == "__main__":
    app()
