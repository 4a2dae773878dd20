"""Trainings in several real processes that learn together, without a service around them."""

import json
import os
from collections.abc import Callable, Sequence
from itertools import count
from mmap import mmap
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models.base import Architecture, Learner
from models.parts.adapters import LoRA
from models.parts.training import Transfer
from tasks import catalog
from tests.toys import toy
from tests.worker.shop import rows
from tests.worker.trainings import Course, course, every_task_and_architecture
from worker import elastic, snapshots
from worker.group import ALONE, Group, Together
from worker.loop import Progress, State, fit
from worker.sharding import Sharded
from worker.snapshots import Snapshot

_FORKED = get_context("forkserver")
_FORKED.set_forkserver_preload(["worker.warm"])

TABLE = "tabular-classification"
SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9}}
"""Adam makes large differences of the smallest ones, where a gradient is nearly zero."""
QUIET = {"name": "mlp", "layers": 2, "width": 8, "dropout": 0.0, "norm": "none"}
NOISY = {"name": "mlp", "layers": 2, "width": 8, "dropout": 0.3, "norm": "batch"}
SPECIAL: dict[str, dict[str, Any]] = {
    "class weights": {"loss": {"class_weights": "balanced"}},
    "pieces": {"training": {"micro_batches": 3}},
    "pieces and class weights": {
        "training": {"micro_batches": 3},
        "loss": {"class_weights": "balanced"},
    },
    "float16": {"training": {"precision": "float16", "micro_batches": 2}},
    "a piece for each example": {"training": {"micro_batches": 9, "batch_size": 17, "epochs": 1}},
    "clipping": {"training": {"clipping": {"norm": 0.05}}},
    "one example a step": {"training": {"batch_size": 1, "epochs": 1}},
    "a last batch of one": {"training": {"batch_size": 17}},
    "gradual unfreezing": {
        "training": {"epochs": 5},
        "transfer": Transfer(trainable_blocks=0, unfreeze_every=1),
    },
    "a pull": {"transfer": Transfer(l2_sp=0.5)},
    "adapters": {"transfer": Transfer(adapters=LoRA(rank=2))},
    "a weight without a gradient": {},
    "early stopping": {"training": {"epochs": 60, "early_stopping": {"patience": 2}}},
}
DRAWN = {"search", "image-generation", "style-transfer"}


def kind(task: str, architecture: str) -> type[Architecture]:
    """The architecture that a task knows by that name."""
    return catalog.architectures(catalog.family_of(catalog.tasks()[task]))[architecture]


PAIRS = [
    f"{name}/{architecture}"
    for name, architecture in every_task_and_architecture(without=DRAWN)
    if kind(name, architecture).spreads
]
"""A search learns from the other examples of a batch, and they are others where it is cut. What learns to make images
does so from noise that is drawn, and what learns to paint in styles that are, by each process for itself."""

CASES = [*PAIRS, *SPECIAL]


def training(case: str, group: Group = ALONE) -> Course:
    """A fresh one in which nothing is drawn at random and no example knows the others of its batch."""
    begun = _course(case)
    learner = begun.trained.learner
    group.place(learner, "cpu")
    learner.start(begun.training, learner.transfer, learner.steps)
    return begun


def _course(case: str) -> Course:
    if case == "noise":
        return course(TABLE, rows(120).encode(), NOISY)
    if case in SPECIAL:
        options = dict(SPECIAL[case])
        given = {**SGD, **options.pop("training", {})}
        started = course(TABLE, uneven(), QUIET, given, **options)
        if case == "a weight without a gradient":
            started.trained.learner.unused = nn.Parameter(torch.ones(3))
        return started
    task, architecture = case.split("/")
    fields = kind(task, architecture).model_fields
    quiet: dict[str, Any] = {name: 0.0 for name in fields if "dropout" in name or name == "hidden"}
    if "norm" in fields:
        quiet["norm"] = "layer"
    of_task = catalog.task_named(task).model_fields
    own: dict[str, Any] = {name: 0.0 for name in of_task if "dropout" in name}
    if "augmentation" in of_task:
        own["augmentation"] = {}
    if "decoder" in of_task:
        own["decoder"] = {"name": "unet", "norm": "layer", "dropout": 0.0}
    if task == "video-classification":
        own["time"] = {"name": "gru", "dropout": 0.0}
    if task == "image-to-image":
        own |= {"degradation": {"name": "super-resolution"}, "turns": False}
    with TemporaryDirectory() as folder:
        content = toy(task, Path(folder), 60)["file"].path.read_bytes()
    return course(task, content, {"name": architecture, **quiet}, {**SGD, "epochs": 2}, **own)


def uneven() -> bytes:
    """Rows of which one label has more."""
    header, *lines = rows(160).splitlines()
    return "\n".join([header, *(s for n, s in enumerate(lines) if n % 2 or "low" in s)]).encode()


def learn(case: str, folder: Path, group: Group = ALONE) -> None:
    """Train to the end; the weights and what was told go to files of this rank in `folder`."""
    given = training(case, group)
    tell(list(fit(*given, interval=0.0, group=group)), folder, case, group)
    save_file(given.trained.learner.state_dict(), place(folder, case, group.rank, "weights"))


def tell(reports: list[Progress], folder: Path, case: str, group: Group) -> None:
    """Write down the last state, and all points of the curves."""
    points = [point for report in reports for point in report.points]
    last = reports[-1].state.model_dump(mode="json")
    place(folder, case, group.rank, "told").write_text(json.dumps([last, points]))


def place(folder: Path, case: str, rank: int, what: str) -> Path:
    return folder / f"{case.replace('/', ' ')} {rank} {what}"


def weights(folder: Path, case: str, rank: int) -> dict[str, Tensor]:
    return load_file(place(folder, case, rank, "weights"))


def told(folder: Path, case: str, rank: int) -> Any:
    return json.loads(place(folder, case, rank, "told").read_text())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0


def learn_and_go_on(case: str, folder: Path, group: Group = ALONE) -> None:
    """Train to the end, and again from each of three moments; weights of `case`, and of "`case` N"."""
    given, moments = training(case), list[tuple[State, Snapshot]]()
    for report in fit(*given, interval=0.0, group=group):
        moments.append((report.state, snapshots.take(given.trained.learner)))
    save_file(given.trained.learner.state_dict(), place(folder, case, group.rank, "weights"))
    # Only rank 0 reports while it judges.
    steps = sorted({state.step for state, _ in moments})
    for number, step in enumerate((steps[0], steps[len(steps) // 2], steps[-3])):
        state, snapshot = next(moment for moment in moments if moment[0].step == step)
        again, other = training(case), type(group)
        snapshots.put_back(again.trained.learner, snapshot)
        fellows = Together(mmap(-1, 1)) if other is Together else group
        for _ in fit(*again, state=state, interval=0.0, group=fellows):
            pass
        path = place(folder, f"{case} {number}", group.rank, "weights")
        save_file(again.trained.learner.state_dict(), path)


def learn_in_parts(case: str, folder: Path, group: Sharded) -> None:
    """Train to the end; the whole weights, and what each rank told and holds, go to files in `folder`."""
    given = training(case, group)
    tell(list(fit(*given, interval=0.0, group=group)), folder, case, group)
    held = parts(given.trained.learner)
    place(folder, case, group.rank, "held").write_text(json.dumps(held))
    keep_whole(given.trained.learner, place(folder, case, 0, "weights"), group)


def parts(learner: Learner) -> list[tuple[int, int]]:
    """How many numbers this process holds, and how many there are, of each weight and each optimizer's tensor."""
    states = [s for optimizer in learner.optimizers.values() for s in optimizer.state.values()]
    found = [*learner.parameters(), *(t for s in states for t in s.values() if t is not None)]
    return [
        (t.to_local().numel() if isinstance(t, DTensor) else t.numel(), t.numel()) for t in found
    ]


def keep_whole(learner: Learner, path: Path, group: Sharded) -> None:
    """Have rank 0 write the whole weights, and the others help."""
    if group.rank == 0:
        save_file(group.take_weights(learner), path)
        group._tell("over")
    else:
        group.attend()


def learn_in_parts_and_go_on(case: str, folder: Path, group: Sharded) -> None:
    """Train to the end, and again from before and after the first judging; weights of `case`, and of "`case` N"."""
    given, moments = training(case, group), dict[int, tuple[State, Snapshot]]()
    for report in fit(*given, interval=0.0, group=group):
        step, last = report.state.step, report.plan.steps_per_epoch
        if group.rank == 0 and step in (last, last + 2) and step not in moments:
            moments[step] = report.state, group.take(given.trained.learner)
    keep_whole(given.trained.learner, place(folder, case, 0, "weights"), group)
    dist.broadcast_object_list(heard := [moments])
    for number, (state, snapshot) in enumerate(heard[0].values()):
        fellows = Sharded(mmap(-1, 1))
        again = training(case, fellows)
        fellows.put_back(again.trained.learner, snapshot)
        for _ in fit(*again, state=state, group=fellows):
            pass
        path = place(folder, f"{case} {number}", 0, "weights")
        keep_whole(again.trained.learner, path, fellows)


def gather(
    size: int,
    folder: Path,
    work: Callable[[str, Path, Any], None],
    cases: Sequence[str],
    kind: type[Together] = Together,
) -> None:
    """Have `size` processes work together on each of the cases, as a group of some kind."""
    file = folder / f"meeting {next(_MEETINGS)}"
    members = [
        _FORKED.Process(target=_be, args=(rank, size, file, work, cases, kind))
        for rank in range(size)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(600)
        member.kill()
    assert [member.exitcode for member in members] == [0] * size


_MEETINGS = count()


def _be(
    rank: int,
    size: int,
    file: Path,
    work: Callable[[str, Path, Any], None],
    cases: Sequence[str],
    kind: type[Together],
) -> None:
    torch.set_num_threads(1)
    elastic.join(file, rank, size, "cpu")
    for case in cases:
        work(case, file.parent, kind(mmap(-1, 1)))
    os._exit(0)
