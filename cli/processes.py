"""API and worker as two processes under one: started together, stopped together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

GRACE_SECONDS = 40
"""Above what a worker may take to write a checkpoint and an API to finish its requests."""
RESTART_SECONDS = 1.0
PR_SET_PDEATHSIG = 1


def serve(data: Path, host: str, port: int, extra: Mapping[str, str] | None = None) -> int:
    """Run API and worker until a signal; a part that dies is started again. Returns an exit status."""
    if reason := unusable(host, port):
        print(f"modelyard: {reason}", file=sys.stderr)  # noqa: T201
        return 2
    os.umask(0o077)  # what is uploaded and learned is nobody else's business
    data.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "MODELYARD_DATA_DIR": str(data.absolute()), **(extra or {})}
    migrated = subprocess.run([*COMMAND, "migrate"], env=environment, check=False)
    if migrated.returncode:
        return migrated.returncode
    parts = {
        "api": [*COMMAND, "api", "--host", host, "--port", str(port)],
        "worker": [*COMMAND, "worker"],
    }
    return _keep_running(parts, environment)


def share_port(count: int, arguments: list[str]) -> int:
    """Run so many API processes that listen on one port, like `serve`."""
    with TemporaryDirectory(prefix="modelyard-counts-") as folder:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder}
        command = [*COMMAND, "api", "--shared", *arguments]
        return _keep_running({f"api {n}": command for n in range(1, count + 1)}, environment)


COMMAND = [sys.executable, "-m", "cli.main"]


def unusable(host: str, port: int) -> str | None:
    """Why nothing can listen there, if so."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
    return None


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _keep_running(parts: dict[str, list[str]], environment: dict[str, str]) -> int:
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    started = {name: _start(command, environment) for name, command in parts.items()}
    while not stopping:
        time.sleep(0.2)
        for name, process in started.items():
            status = process.poll()
            if status is not None and not stopping:
                if status == 2:  # a wrong setting: said so itself, and would say so again
                    stopping = True
                    continue
                print(f"modelyard: {name} ended with {status}; starting it again", file=sys.stderr)  # noqa: T201
                time.sleep(RESTART_SECONDS)
                started[name] = _start(parts[name], environment)
    return _stop(list(started.values()))


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process alone, which stops the parts in order.
    return subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=_end_with_parent
    )


def _end_with_parent() -> None:
    """Have the kernel terminate this process when the one that started it is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(processes: list[subprocess.Popen[bytes]]) -> int:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return max((2 for p in processes if p.returncode == 2), default=0)
