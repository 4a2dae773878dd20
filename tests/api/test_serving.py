"""Models come into memory once, leave it in order, and answer like the trained model itself."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from api.errors import Busy
from api.metrics import REGISTRY
from api.serving import measures
from api.serving.engine import Serving
from api.serving.loading import Loader
from api.settings import ApiSettings
from store import blobs, jobs, models
from store.errors import Conflict, NotFound
from store.session import Database
from store.tables import Checkpoint
from tasks.parts.problems import Invalid
from tasks.parts.tabular import TabularCodec
from tasks.trained import Trained
from tests.api.serving_world import World, row, train, untrained

Story = Callable[[Serving], Coroutine[Any, Any, None]]


@pytest.fixture
def world(sqlite_database: Database) -> World:
    return World(sqlite_database)


@pytest.fixture
def tell(world: World, tmp_path: Path) -> Callable[..., None]:
    """Runs a story with a serving engine of these settings."""

    def run(story: Story, **settings: Any) -> None:
        async def told() -> None:
            found = ApiSettings(data_dir=tmp_path, **settings)
            serving = Serving(world.database, found)
            try:
                await story(serving)
            finally:
                serving.close()

        asyncio.run(told())

    return run


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that were loaded; loading takes its time."""
    found: list[str] = []
    load = Loader.load

    def watched(self: Loader, checkpoint: Checkpoint) -> Any:
        found.append(checkpoint.id)
        time.sleep(0.05)
        return load(self, checkpoint)

    monkeypatch.setattr(Loader, "load", watched)
    return found


async def predict(serving: Serving, world: World, ref: str, values: list[Any]) -> list[Any]:
    return await serving.predict(await serving.find(world.project, ref), values)


def test_fifty_requests_at_once_get_what_the_model_itself_says(
    world: World, tell: Callable[..., None], loads: list[str]
) -> None:
    world.publish()
    trained = train().trained

    async def story(serving: Serving) -> None:
        answers = await asyncio.gather(
            *(predict(serving, world, "rows", [row(n), row(n + 1_000)]) for n in range(50))
        )
        for n, answer in enumerate(answers):
            inputs = trained.codec.read_inputs([row(n), row(n + 1_000)])
            for found, expected in zip(answer, trained.predict(inputs), strict=True):
                assert found.label == expected.label
                assert found.scores == pytest.approx(expected.scores, abs=1e-6)

    tell(story)
    assert len(loads) == 1, "a stampede loads once"


def test_whoever_leaves_while_a_model_loads_does_not_end_it_for_the_others(
    world: World, tell: Callable[..., None], loads: list[str]
) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        first, second = (
            asyncio.ensure_future(predict(serving, world, "rows", [row(1)])) for _ in range(2)
        )
        while not loads:
            await asyncio.sleep(0.001)
        first.cancel()
        assert len(await second) == 1

    tell(story)
    assert len(loads) == 1


def test_the_least_recently_used_model_makes_room(
    world: World, tell: Callable[..., None], loads: list[str]
) -> None:

    first, second, third = (world.publish(name) for name in ("a", "b", "c"))

    async def story(serving: Serving) -> None:
        for ref in ("a", "b", "a", "c", "a"):
            await predict(serving, world, ref, [row(1)])
        assert first.id in serving.residents
        assert second.id not in serving.residents
        assert third.id in serving.residents
        assert serving.residents.bytes <= limit
        await predict(serving, world, "b", [row(1)])

    loader = Loader(world.database, None, "cpu")  # type: ignore[arg-type]
    limit = loader.measure(first) * 2 + 10
    tell(story, resident_bytes=limit)
    assert loads == [first.id, second.id, third.id, second.id]


def test_a_model_in_use_is_not_pushed_out(world: World, tell: Callable[..., None]) -> None:
    busy, other = world.publish("busy"), world.publish("other")

    async def story(serving: Serving) -> None:
        model = await serving.residents.get(busy)
        inputs = model.trained.codec.read_inputs([row(n) for n in range(20_000)])
        answer = asyncio.ensure_future(model.queues["predictions"].predict(inputs))
        await asyncio.sleep(0)
        await serving.residents.get(other)
        assert not answer.done(), "the test needs a longer prediction"
        assert busy.id in serving.residents
        assert len(await answer) == 20_000
        await serving.residents.get(world.publish("third"))
        assert busy.id not in serving.residents

    tell(story, resident_bytes=1)


def test_a_model_above_the_limit_is_served_alone(
    world: World, tell: Callable[..., None], loads: list[str]
) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        for _ in range(3):
            assert len(await predict(serving, world, "rows", [row(1)])) == 1

    tell(story, resident_bytes=1)
    assert len(loads) == 1


def test_a_load_that_failed_is_tried_again(
    world: World, tell: Callable[..., None], tmp_path: Path
) -> None:
    checkpoint = world.publish()
    cached = tmp_path / "cache" / "weights" / checkpoint.weights_blob

    async def story(serving: Serving) -> None:
        cached.write_bytes(b"broken")
        with pytest.raises(SafetensorError):
            await predict(serving, world, "rows", [row(1)])
        assert len(serving.residents) == 0
        cached.unlink()
        assert len(await predict(serving, world, "rows", [row(1)])) == 1

    tell(story)


def test_a_busy_model_needs_no_sql(
    world: World, tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    asked: list[str] = []
    resolve = models.resolve

    def watched(session: Any, project_id: str, ref: str) -> Any:
        asked.append(ref)
        return resolve(session, project_id, ref)

    monkeypatch.setattr(models, "resolve", watched)

    async def story(serving: Serving) -> None:
        begun = time.monotonic()
        for n in range(100):
            await predict(serving, world, "rows", [row(n)])
        assert len(asked) <= 2 + (time.monotonic() - begun) / 0.4

    tell(story)


def test_a_new_version_shows_within_a_second(world: World, tell: Callable[..., None]) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        assert (await serving.resolve(world.project, "rows")).ref == "rows@1"
        world.publish(example=train(1))
        deadline = time.monotonic() + 1.0
        while (await serving.resolve(world.project, "rows")).ref == "rows@1":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await serving.resolve(world.project, "rows@1")).ref == "rows@1"

    tell(story)


def test_a_name_that_was_idle_is_looked_up_before_it_is_used(
    world: World, tell: Callable[..., None]
) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        await serving.resolve(world.project, "rows")
        world.publish()
        await asyncio.sleep(0.9)
        assert (await serving.resolve(world.project, "rows")).ref == "rows@2"

    tell(story)


def test_a_deleted_model_is_gone_at_once_where_it_was_deleted(
    world: World, tell: Callable[..., None]
) -> None:
    checkpoint = world.publish()

    async def story(serving: Serving) -> None:
        await predict(serving, world, "rows", [row(1)])
        with world.database.transaction() as session:
            models.delete(session, world.project, "rows")
        await serving.forget([checkpoint.id])
        assert checkpoint.id not in serving.residents
        with pytest.raises(NotFound):
            await serving.resolve(world.project, "rows")

    tell(story)


def test_a_name_of_another_project_is_unknown(world: World, tell: Callable[..., None]) -> None:
    checkpoint = world.publish()

    async def story(serving: Serving) -> None:
        await serving.resolve(world.project, "rows")
        for ref in ("rows", "rows@1", checkpoint.id, checkpoint.job_id):
            with pytest.raises(NotFound):
                await serving.resolve(world.other, str(ref))

    tell(story)


def test_a_checkpoint_that_went_for_a_better_one_is_no_reason_to_fail(
    world: World, tell: Callable[..., None]
) -> None:
    job = world.start()
    first = world.save(job)

    async def story(serving: Serving) -> None:
        assert (await serving.resolve(world.project, job.id)).checkpoint.id == first.id
        world.save(job, train(1), step=2)
        with world.database.transaction() as session:
            assert blobs.sweep(session, 0) > 0, "the bytes of the first one"
        model = await serving.find(world.project, job.id)
        assert model.ref == f"{job.id}@2"
        assert len(await serving.predict(model, [row(1)])) == 1
        with pytest.raises(NotFound):
            await serving.resolve(world.project, f"{job.id}@1")
        with pytest.raises(NotFound):
            await serving.find(world.project, first.id)

    tell(story)


def test_a_checkpoint_that_is_gone_still_answers_whoever_has_its_model(
    world: World, tell: Callable[..., None]
) -> None:
    job = world.start()
    world.save(job)

    async def story(serving: Serving) -> None:
        model = await serving.find(world.project, job.id)
        world.save(job, train(1), step=2)
        with world.database.transaction() as session:
            blobs.sweep(session, 0)
        assert len(await serving.predict(model, [row(1)])) == 1

    tell(story)


def test_a_job_serves_its_best_checkpoint_and_says_when_there_is_none(
    world: World, tell: Callable[..., None]
) -> None:
    job = world.start()

    async def story(serving: Serving) -> None:
        with pytest.raises(Conflict, match="no checkpoint to predict with; it is running"):
            await serving.resolve(world.project, job.id)
        with pytest.raises(NotFound):
            await serving.resolve(world.project, "job_unknown")
        world.save(job)
        assert len(await predict(serving, world, job.id, [row(1)])) == 1

    tell(story)


def test_an_evaluation_is_no_model(world: World, tell: Callable[..., None]) -> None:
    with world.database.transaction() as session:
        job = jobs.create(
            session,
            world.project,
            kind="evaluate",
            name="check",
            dataset_id=world.dataset,
            task="tabular-classification",
            spec={},
            request={},
            queue="cpu",
        )

    async def story(serving: Serving) -> None:
        with pytest.raises(Conflict, match="is no training"):
            await serving.resolve(world.project, job.id)

    tell(story)


def test_what_a_name_newly_stands_for_is_loaded_before_it_answers(
    world: World, tell: Callable[..., None], loads: list[str]
) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        assert (await serving.find(world.project, "rows")).ref == "rows@1"
        newest = world.publish(example=train(1))
        await serving.forget()
        shown: list[str] = []
        while "rows@2" not in shown:
            begun = time.monotonic()
            shown.append((await serving.find(world.project, "rows")).ref)
            ready = serving.residents.ready(newest.id)
            assert shown[-1] == "rows@1" or ready, "nobody waits for the new one"
            await asyncio.sleep(0.002)
            assert time.monotonic() - begun < 30
        assert shown[0] == "rows@1", "the old one answers while the new one loads"
        assert sorted(shown) == shown
        assert (await serving.find(world.project, "rows")).ref == "rows@2"

    tell(story)
    assert len(loads) == 2


def test_a_deleted_version_does_not_stand_in_for_the_new_one(
    world: World, tell: Callable[..., None]
) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        await serving.find(world.project, "rows")
        world.publish()
        with world.database.transaction() as session:  # in another process
            models.delete(session, world.project, "rows@1")
        await asyncio.sleep(0.9)
        assert (await serving.find(world.project, "rows")).ref == "rows@2"

    tell(story)


def test_the_one_before_stays_while_the_new_one_cannot_be_loaded(
    world: World, tell: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        await serving.find(world.project, "rows")
        broken = world.publish(example=train(1, width=16))
        cached = tmp_path / "cache" / "weights" / broken.weights_blob
        cached.write_bytes(b"broken")
        await serving.forget()
        while "rows@2 cannot be loaded" not in caplog.text:
            answers = await predict(serving, world, "rows", [row(1)])
            assert len(answers) == 1
            await asyncio.sleep(0.01)
        assert (await serving.find(world.project, "rows")).ref == "rows@1"

    tell(story)


def test_a_model_that_nobody_asks_for_leaves_memory(
    world: World, tell: Callable[..., None]
) -> None:
    idle, used = world.publish("idle"), world.publish("used")

    async def story(serving: Serving) -> None:
        await predict(serving, world, "idle", [row(1)])
        while idle.id in serving.residents:
            await predict(serving, world, "used", [row(1)])
            await asyncio.sleep(0.02)
        assert used.id in serving.residents
        assert len(await predict(serving, world, "idle", [row(1)])) == 1

    tell(story, resident_seconds=0.3)


def test_a_model_is_warm_when_it_is_ready(
    world: World, tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    passes: list[int] = []
    real = Trained.predict

    def watched(self: Trained, inputs: Any, batch_size: int = 256) -> Any:
        passes.append(len(inputs))
        return real(self, inputs, batch_size)

    monkeypatch.setattr(Trained, "predict", watched)

    async def story(serving: Serving) -> None:
        await serving.find(world.project, "rows")
        assert passes == [1, 1, 1]

    tell(story)


def test_a_model_that_does_not_warm_up_is_served_all_the_same(
    world: World, tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()

    async def story(serving: Serving) -> None:
        assert len(await predict(serving, world, "rows", [row(1)])) == 1

    monkeypatch.setattr(TabularCodec, "blank", lambda self: {"no such column": 1})
    tell(story)


def test_requests_are_counted_by_how_they_ended() -> None:
    measured = measures.of_model("t", "counted-by-outcome@1")
    measured.answered(3, 0.02, 0.001)
    for error in (Invalid(), Busy("full"), asyncio.CancelledError(), ValueError()):
        measured.failed(error)
    value = REGISTRY.get_sample_value
    labels = {"task": "t", "model": "counted-by-outcome"}
    assert value("modelyard_predictions_total", labels) == 3
    assert value("modelyard_prediction_seconds_count", labels) == 1
    assert value("modelyard_prediction_queue_seconds_count", labels) == 1
    for reason in ("invalid", "busy", "left", "error"):
        found = value("modelyard_prediction_failures_total", {**labels, "reason": reason})
        assert found == 1


def test_model_names_beyond_the_bound_share_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST_MODELS", 2)
    monkeypatch.setattr(measures, "_names", set())
    first, second, third, fourth = (measures.of_model("t", f"m{n}@1") for n in range(4))
    assert first is measures.of_model("t", "m0@2")
    assert first is not second
    assert third is fourth
    assert third is not second
    assert measures.of_model("t", "ckpt_a") is measures.of_model("t", "job_b")


def failures_of(reason: str) -> float:
    labels = {"task": "text-generation", "model": "tales", "reason": reason}
    return REGISTRY.get_sample_value("modelyard_prediction_failures_total", labels) or 0.0


def test_a_text_ends_when_nobody_waits_for_it_any_more(
    world: World, tell: Callable[..., None]
) -> None:
    world.publish("tales", untrained("text-generation"))

    async def story(serving: Serving) -> None:
        model = await serving.find(world.project, "tales")
        value = {"prompt": "All", "seed": 1, "max_new_tokens": 8}
        past = asyncio.get_running_loop().time()
        pieces = [piece async for piece in await serving.write(model, value, past)]
        assert [(piece.finish_reason, piece.tokens) for piece in pieces] == [("time", 1)]
        whole = [piece async for piece in await serving.write(model, value, None)]
        assert whole[-1].finish_reason in ("length", "end")
        assert len(whole) > 2

    tell(story)


def test_a_text_is_not_written_on_when_its_reader_has_left(
    world: World, tell: Callable[..., None]
) -> None:
    world.publish("tales", untrained("text-generation"))

    async def story(serving: Serving) -> None:
        model = await serving.find(world.project, "tales")
        before = failures_of("left")
        value = {"prompt": "All", "seed": 1, "max_new_tokens": 8}
        pieces = await serving.write(model, value, None)
        await anext(pieces)
        await pieces.aclose()
        assert failures_of("left") == before + 1

    tell(story)
