"""What a request leaves to the device is found out before the first step, and then stays so."""

import gc
import resource
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch._inductor.config as inductor

from models.base import Batch, Learner, Supervised
from models.parts.compiling import Compiled
from store import events, logs
from store.tables import Job
from tests.worker.shop import Orders, Shop, rows, texts
from worker import devices, probes
from worker.trainer import Exit

TABLE = "tabular-classification"
PLAIN = {"name": "mlp", "layers": 1, "width": 16, "dropout": 0.0, "norm": "none"}
SHORT = {"epochs": 2, "batch_size": 16}


def fits(examples: int) -> Any:
    """A device with memory for so many examples at a time."""
    loss = Supervised.loss

    def limited(learner: Supervised, batch: Batch) -> torch.Tensor:
        if len(batch) > examples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(learner, batch)

    return patch.object(Supervised, "loss", limited)


def reasons(shop: Shop, job: Job) -> list[dict[str, Any]]:
    rows = shop.act(events.page, job.id).rows
    return [event.data["reason"] for event in rows if "reason" in event.data]


def said(shop: Shop, job: Job) -> str:
    return "\n".join(row.line for row in shop.act(logs.page, job.id).rows)


# The largest batch


def test_the_largest_batch_that_fits_is_found_once_and_written_down(shop: Shop) -> None:
    job = shop.submit(shop.upload(TABLE, rows()), PLAIN, {"epochs": 2, "batch_size": "largest"})
    assert job.spec["training"]["batch_size"] == "largest"
    with fits(40):
        assert shop.train(job) is Exit.DONE
    found = shop.job(job)
    assert (found.status, found.attempt) == ("queued", 0), found.error
    assert found.spec["training"]["batch_size"] == 32
    message = "The largest batch that the memory of cpu takes has 32 examples."
    assert reasons(shop, job) == [{"code": "batch_size", "message": message}]
    assert shop.train(job) is Exit.DONE
    assert shop.job(job).status == "succeeded", shop.job(job).error
    assert message in said(shop, job)
    assert "2 epochs of 4 steps" in said(shop, job)


def test_what_was_tried_leaves_no_trace_in_what_is_learned(small_shop: Shop) -> None:
    dataset = small_shop.upload(TABLE, rows())
    found = small_shop.submit(dataset, PLAIN, {"epochs": 2, "batch_size": "largest"})
    with fits(40):
        small_shop.train(found)
    small_shop.train(found)
    given = small_shop.submit(dataset, PLAIN, {"epochs": 2, "batch_size": 32})
    small_shop.train(given)
    assert small_shop.last(found).weights_blob == small_shop.last(given).weights_blob
    assert small_shop.last(found).state_blob == small_shop.last(given).state_blob


def test_a_batch_never_has_more_examples_than_there_are(small_shop: Shop) -> None:
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, {"batch_size": "largest"})
    small_shop.train(job)
    assert small_shop.job(job).spec["training"]["batch_size"] == 120


def test_ragged_examples_are_tried_with_the_longest(small_shop: Shop) -> None:
    longest, train_step = list[int](), Learner.train_step

    def watched(learner: Learner, batch: Batch, step: int) -> torch.Tensor:
        longest.append(int(batch.inputs[1].max()))
        if len(batch) > 16:
            raise MemoryError
        return train_step(learner, batch, step)

    dataset = small_shop.upload("text-classification", texts())
    job = small_shop.submit(
        dataset, {"name": "bag-of-embeddings"}, {"batch_size": "largest", "epochs": 1}
    )
    with patch.object(Learner, "train_step", watched):
        small_shop.train(job)
    assert small_shop.job(job).spec["training"]["batch_size"] == 16
    assert len(set(longest)) == 1, "each try has the longest of all"


def test_what_does_not_fit_even_by_twos_fails_and_says_so(small_shop: Shop) -> None:
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, {"batch_size": "largest"})
    with fits(1):
        small_shop.train(job)
    found = small_shop.job(job)
    assert (found.status, (found.error or {})["code"]) == ("failed", "out_of_memory")


def test_a_training_that_is_cancelled_while_it_tries_ends(small_shop: Shop) -> None:
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, {"batch_size": "largest"})
    small_shop.train(job, Orders("cancel", 2))
    assert small_shop.job(job).status == "cancelled"


def test_a_limit_of_memory_is_kept_with_room_to_spare(small_shop: Shop) -> None:
    """Each example of the wide layer takes 32 KiB and more, and 256 MiB are left."""
    wide = {"name": "mlp", "layers": 1, "width": 8192, "dropout": 0.0, "norm": "none"}
    dataset = small_shop.upload(TABLE, rows(16_000))
    job = small_shop.submit(dataset, wide, {"batch_size": "largest"})
    before = resource.getrlimit(resource.RLIMIT_DATA)
    gc.collect()  # What earlier tests left would be given back in the middle, as more room.
    with patch.object(devices, "memory_free", lambda name: 512 << 20):
        small_shop.train(job)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    found = small_shop.job(job).spec["training"]["batch_size"]
    assert 256 <= found <= 4096


def test_memory_that_a_container_may_not_use_is_not_free(tmp_path: Any) -> None:
    numbers = {"memory.max": 3000, "memory.current": 1500}
    for name, number in numbers.items():
        (tmp_path / name).write_text(f"{number}\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 400\n")
    with patch.object(devices, "_GROUP", tmp_path):
        assert devices.memory_free("cpu") == 1900
        (tmp_path / "memory.max").write_text("max\n")
        assert (devices.memory_free("cpu") or 0) > 1 << 20


# Kernels made for the network


class Clock:
    """Time that passes only when something is said to take some."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.mark.parametrize(
    ("epochs", "fast", "cost", "chosen"),
    [
        (1_000, 0.005, 30, "always"),
        (1_000, 0.005, 50, "never"),
        (1_000, 0.020, 0, "never"),
        (100, 0.001, 0, "never"),
    ],
)
def test_a_network_is_compiled_when_that_pays_within_the_job(
    small_shop: Shop, epochs: int, fast: float, cost: float, chosen: str
) -> None:
    """An epoch has eight steps, which take 10 ms each unless they are `fast`."""
    asked = {"epochs": epochs, "batch_size": 16, "compile": "when-it-pays"}
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, asked)
    assert job.spec["training"]["compile"] == "when-it-pays"
    clock, train_step = Clock(), Learner.train_step

    def make(*_: object) -> None:
        clock.now += cost

    def step(learner: Supervised, *given: Any) -> torch.Tensor:
        clock.now += 0.01 if learner.kernels is None else fast
        learner.kernels, kept = None, learner.kernels
        loss = train_step(learner, *given)
        learner.kernels = kept
        return loss

    with (
        patch.object(probes, "time", clock),
        patch.object(Compiled, "make", make),
        patch.object(Learner, "train_step", step),
    ):
        assert small_shop.train(job) is Exit.DONE
    assert small_shop.job(job).spec["training"]["compile"] == chosen
    (reason,) = reasons(small_shop, job)
    assert reason["code"] == "compile"
    assert reason["message"] in said(small_shop, job)


def no_compiler() -> Any:
    return inductor.patch({"cpp.cxx": (None, "no-such-compiler")})


def test_where_nothing_compiles_the_network_is_used_as_it_is(small_shop: Shop) -> None:
    asked = {**SHORT, "compile": "when-it-pays"}
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, asked)
    with no_compiler(), patch.object(probes, "LEAST_SECONDS", 0.0):
        small_shop.train(job)
    assert small_shop.job(job).spec["training"]["compile"] == "never"
    assert "The network is not compiled: the network cannot be compiled on this machine" in said(
        small_shop, job
    )
    small_shop.train(job)
    assert small_shop.job(job).status == "succeeded"


def test_what_must_be_compiled_and_cannot_be_fails_and_says_so(small_shop: Shop) -> None:
    job = small_shop.submit(small_shop.upload(TABLE, rows()), PLAIN, {**SHORT, "compile": "always"})
    with no_compiler():
        small_shop.train(job)
    error = small_shop.job(job).error or {}
    assert error["code"] == "cannot_compile"
    assert error["message"].startswith("The network cannot be compiled on this machine: ")
    assert "compiler" in error["message"]


def test_a_forest_has_nothing_to_be_found_out(small_shop: Shop) -> None:
    asked = {"batch_size": "largest", "compile": "when-it-pays"}
    job = small_shop.submit(small_shop.upload(TABLE, rows()), {"name": "random-forest"}, asked)
    training = job.spec["training"]
    assert (training["batch_size"], training["compile"]) == (120, "never")
