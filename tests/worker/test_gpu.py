"""What only a GPU can show."""

from collections.abc import Iterator

import pytest
import torch

from models.parts.optimizers import AdamW
from tests.worker import ensemble
from tests.worker.shop import rows
from tests.worker.trainings import Course, course, fingerprint
from worker import probes, snapshots
from worker.loop import fit, plan_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TABLE = "tabular-classification"
SMALL = {"name": "mlp", "layers": 1, "width": 64, "dropout": 0.2}


def moved(training: Course) -> Course:
    """The training, on the first GPU."""
    learner = training.trained.learner.to("cuda")
    plan = plan_of(learner, training.train.columns, training.training)
    learner.start(training.training, None, plan.steps)
    return training


@pytest.fixture
def _impatient() -> Iterator[None]:
    """Waiting for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    # Where sentences begin is found out by looking at the tokens.
    "case",
    [case for case in ensemble.PAIRS if not case.endswith("hierarchical-attention")],
)
def test_a_step_never_waits_for_the_gpu(case: str, precision: str) -> None:
    given = ensemble.training(case)
    update = {"precision": precision, "optimizer": AdamW()}
    training = moved(given._replace(training=given.training.model_copy(update=update)))
    learner, batch = training.trained.learner, training.train.columns.batch(torch.arange(8))
    learner.enter_epoch(0)
    batch = batch.to("cuda")
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step == 3 else "default")
        learner.train_step(batch, step)


@pytest.mark.parametrize("batch_size", [32, 36])
def test_cuda_graphs_resumed_in_the_middle_give_the_same_bits(batch_size: int) -> None:
    asked = {"epochs": 4, "batch_size": batch_size, "compile": "always"}
    fresh = lambda: moved(course(TABLE, rows(120).encode(), SMALL, asked))  # noqa: E731
    undisturbed = fresh()
    learner = undisturbed.trained.learner
    moments = [(r.state, snapshots.take(learner)) for r in fit(*undisturbed, interval=0.0)]
    state, snapshot = moments[len(moments) // 2]
    resumed = fresh()
    snapshots.put_back(resumed.trained.learner, snapshot)
    for _ in fit(*resumed, state=state):
        pass
    assert fingerprint(resumed.trained.learner.cpu()) == fingerprint(learner.cpu())


def test_a_batch_is_found_that_leaves_memory_free() -> None:
    wide = {"name": "mlp", "layers": 2, "width": 16_384, "dropout": 0.0, "norm": "none"}
    training = moved(course(TABLE, rows(400).encode(), wide))
    learner, train = training.trained.learner, training.train.columns
    asked = training.training.model_copy(update={"batch_size": "largest"})
    torch.cuda.reset_peak_memory_stats()
    *_, found = probes.find_batch_size(learner, train, asked, 1, "cuda:0", 1)
    assert found is not None
    assert found.training.batch_size == train.examples
    _, total = torch.cuda.mem_get_info()
    assert torch.cuda.max_memory_reserved() < probes.ROOM * total
