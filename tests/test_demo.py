"""The demonstration, as a new user sees it."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.processes import free_port
from tests.processes import ROOT


@pytest.mark.timeout(600)
def test_the_demo_trains_predicts_transfers_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "demo", "--once", "--port", str(free_port())]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    shown = subprocess.run(
        [*command, "--data", str(tmp_path / "demo")],
        cwd=ROOT,
        env={**environment, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    accuracy = re.search(r"validation accuracy ([01]\.\d{4})", shown.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.98
    assert "digits@1 says" in shown.stdout
    assert re.search(r"The transfer gained \+\d+\.\d points", shown.stdout)
    assert "/docs" in shown.stdout


def test_a_taken_port_is_said_so_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "cli.main", "up", "--data", str(tmp_path), "--port", port]
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
