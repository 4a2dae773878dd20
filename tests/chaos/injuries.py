"""What can happen to a process of the service."""

import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random

import psutil  # type: ignore[import-untyped]

from tests.chaos.cast import (
    LEASE_SECONDS,
    STALL_SECONDS,
    Cast,
    Hurt,
    Nobody,
    nursery,
    trainers,
    tree,
)
from tests.processes import Part


def kill_a_worker(cast: Cast, draw: Random) -> Hurt:
    """Alone: what it has started is to end by itself."""
    return _send(_one_of(cast.workers, draw), signal.SIGKILL)


def lose_the_host_of_a_worker(cast: Cast, draw: Random) -> Hurt:
    worker = _one_of(cast.workers, draw)
    processes = tree(worker)
    hurt = _send(worker, signal.SIGKILL)
    _each(processes, psutil.Process.kill)
    return hurt


def tell_a_worker_to_stop(cast: Cast, draw: Random) -> Hurt:
    return _send(_one_of(cast.workers, draw), signal.SIGTERM)


def kill_a_trainer(cast: Cast, draw: Random) -> Hurt:
    worker = _one_of(cast.workers, draw)
    _each(_some(trainers(worker)), psutil.Process.kill)
    return Hurt(worker.name)


def kill_what_trainers_are_forked_from(cast: Cast, draw: Random) -> Hurt:
    worker = _one_of(cast.workers, draw)
    _each(_some(nursery(worker)), psutil.Process.kill)
    return Hurt(worker.name)


def freeze_a_worker(cast: Cast, draw: Random) -> Hurt:
    """Past its lease. Its trainer wakes first, and may write for seconds before anybody stops it."""
    worker = _one_of(_awake(cast.workers), draw)
    training, processes = _some(trainers(worker)), tree(worker)
    woken = draw.uniform(LEASE_SECONDS + 1, LEASE_SECONDS + 5)
    last = woken + draw.uniform(0.5, 5)
    return _freeze(worker, processes, _thaw(woken, training), _thaw(last, processes))


def freeze_a_supervisor(cast: Cast, draw: Random) -> Hurt:
    """Past its lease, while its trainer goes on."""
    worker = _one_of(_awake(cast.workers), draw)
    itself = tree(worker)[:1]
    seconds = draw.uniform(LEASE_SECONDS + 1, LEASE_SECONDS + 5)
    return _freeze(worker, itself, _thaw(seconds, itself))


def freeze_a_trainer(cast: Cast, draw: Random) -> Hurt:
    """For a while, or until it is ended for its silence."""
    worker = _one_of(cast.workers, draw)
    training = trainers(worker)
    return _freeze(worker, training, _thaw(draw.uniform(1, STALL_SECONDS + 5), training))


def kill_an_api(cast: Cast, draw: Random) -> Hurt:
    return _send(draw.choice(cast.apis), signal.SIGKILL)


def tell_an_api_to_stop(cast: Cast, draw: Random) -> Hurt:
    return _send(draw.choice(cast.apis), signal.SIGTERM)


def freeze_an_api(cast: Cast, draw: Random) -> Hurt:
    api = draw.choice(cast.apis)
    itself = tree(api)[:1]
    return _freeze(api, itself, _thaw(draw.uniform(1, 8), itself))


def kill_the_reconciler(cast: Cast, draw: Random) -> Hurt:
    return _send(cast.reconciler, signal.SIGKILL)


def _one_of(workers: list[Part], draw: Random) -> Part:
    """One at work; now and then any. One that dies before it begins would never get anywhere."""
    found = [worker for worker in workers if draw.random() < 0.1 or trainers(worker)]
    if not found:
        raise Nobody
    return draw.choice(found)


def _awake(workers: list[Part]) -> list[Part]:
    """Raises Nobody when one is frozen: somebody must be there to take the job of the next over."""
    if any(_is_frozen(tree(worker)) for worker in workers):
        raise Nobody
    return workers


def _is_frozen(processes: list[psutil.Process]) -> bool:
    """Whether the first of them is."""
    with suppress(psutil.NoSuchProcess):
        return bool(processes) and processes[0].status() == psutil.STATUS_STOPPED
    return False


def _some(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those there are. Raises Nobody when there are none."""
    if not processes:
        raise Nobody
    return processes


def _send(part: Part, number: signal.Signals) -> Hurt:
    if not part.alive:
        raise Nobody
    part.send(number)
    return Hurt(part.name)


def _freeze(
    part: Part, processes: list[psutil.Process], *later: tuple[float, Callable[[], None]]
) -> Hurt:
    """Raises Nobody also when they are frozen already."""
    if _is_frozen(_some(processes)):
        raise Nobody
    _each(processes, psutil.Process.suspend)
    return Hurt(part.name, later)


def _thaw(seconds: float, processes: list[psutil.Process]) -> tuple[float, Callable[[], None]]:
    return seconds, lambda: _each(processes, psutil.Process.resume)


def _each(processes: Iterable[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            do(process)
