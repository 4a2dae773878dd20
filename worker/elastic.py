"""A job of several devices: a process for each, started, watched and started again by torch's elastic agent.

The agent runs in the trainer, and the processes are forked from it, so that they find everything loaded. When
one of them dies, the agent ends the others and starts all anew, and they go on from the last checkpoint. Rank 0
does what a trainer does that is alone; once it has done it, the trainer leaves with what it says, and the kernel
ends the others. So nobody has to agree on how a training ends.

Nothing listens to the network: the processes find each other by a file that only their user can read (the agent's
store would be open to all hosts, and takes pickles), and their connections are on the loopback interface.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from datetime import timedelta
from mmap import mmap
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worker import jobs
from worker.devices import CPU
from worker.group import Together
from worker.settings import WorkerSettings
from worker.sharding import Sharded
from worker.trainer import Assignment, Exit, Inbox, end_with_parent

MOST_RESTARTS = 3
"""In one run of a job; after that it is the run that has failed."""
LOOK_SECONDS = 0.1
"""How often the agent looks after the processes."""
LINGER_SECONDS = 5.0
"""How long a process in trouble stays, so that one that is not the cause does not look like it."""
_PATIENCE = timedelta(days=30)
"""How long one waits for another: as long as it lives, and the supervisor thinks so."""


class Call(NamedTuple):
    """What the processes are forked with."""

    assignment: Assignment
    settings: WorkerSettings
    inbox: Inbox
    folder: Path
    notes: mmap
    verdict: Connection
    trainer: int


def run(assignment: Assignment, settings: WorkerSettings, inbox: Inbox) -> int:
    """Do a job in a process for each device; the status to leave with, unless rank 0 says it before."""
    prefix = f".ranks-{assignment.job_id}-"
    for left in settings.cache_dir.glob(f"{prefix}*"):  # by a run of this job that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=settings.cache_dir))
    spoken, verdict = Pipe(duplex=False)
    call = Call(assignment, settings, inbox, folder, mmap(-1, 1), verdict, os.getpid())
    Thread(target=_obey, args=(spoken, folder), name="verdict", daemon=True).start()
    # What the agent asks about GPUs must not touch any: a process that has cannot be forked.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=1 + len(assignment.others),
        run_id=assignment.job_id,
        rdzv_backend="c10d",
        rdzv_endpoint=str(folder / "rendezvous"),
        rdzv_configs={"store_type": "file"},
        local_addr="localhost",
        max_restarts=MOST_RESTARTS,
        monitor_interval=LOOK_SECONDS,
        start_method="fork",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        # Those of a stop are for the worker; the agent would take them for its own.
        signals_to_handle="SIGUSR2",
    )
    try:
        elastic_launch(config, _be_a_rank)(call)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return _die_alike(failure.exitcode)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    time.sleep(LINGER_SECONDS)  # until rank 0 was heard
    return 1


def _obey(spoken: Connection, folder: Path) -> None:
    """End the trainer, and with it every rank, when rank 0 has said how the run went."""
    status = spoken.recv()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(status)


def _die_alike(status: int) -> int:
    """Leave as a rank did whose death could not be mended, by the same signal if it was one."""
    if status < 0:
        if status != -signal.SIGKILL:  # whose effect cannot be changed
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _be_a_rank(call: Call) -> None:
    """One of the processes, from its start to its end."""
    end_with_parent()
    if os.getppid() != call.trainer:  # it ended before
        sys.exit(1)
    _end_for_the_agent(call.trainer)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    devices = (call.assignment.device, *call.assignment.others)
    assignment = call.assignment._replace(device=devices[rank], others=())
    join(call.folder / f"meeting-{restarts}", rank, size, assignment.device)
    kind = Sharded if assignment.sharded else Together
    try:
        status = jobs.run(assignment, call.settings, call.inbox, kind(call.notes, restarts))
    except BaseException:
        if not call.notes[0]:  # which says what the cause is
            time.sleep(LINGER_SECONDS)
        raise
    if rank == 0 or status != Exit.DONE:
        call.verdict.send(int(status))


def join(file: Path, rank: int, size: int, device: str) -> None:
    """Become one of `size` processes that meet by a file, which is not there before."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    dist.init_process_group(
        "gloo" if device == CPU else "cpu:gloo,cuda:nccl",
        init_method=f"file://{file}",
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )


def _end_for_the_agent(agent: int) -> None:
    """End at once when the agent says so, whatever this process waits for; nobody else can say so."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != agent:
            pass
        os._exit(1)

    Thread(target=listen, name="agent", daemon=True).start()
