"""Networks are computed in the fastest way that was seen to give the right outputs."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from api.serving.loading import Source
from api.serving.onnx import Exporter
from api.serving.runtimes import TRIALS, Runtimes, Way, as_it_stands, in_bfloat16
from tasks.trained import save_weights
from tests.api.serving_world import train


def slow(x: Tensor) -> Tensor:
    time.sleep(0.003)
    return x * 2


def raising(x: Tensor) -> Tensor:
    raise RuntimeError("no such kernel")


def test_the_reference_answers_while_others_are_tried_and_the_fastest_after_that() -> None:
    runtimes = Runtimes(slow, [Way("quick", lambda x: x * 2.001, 0.01)])
    x = torch.rand(3, 2)
    for _ in range(TRIALS):
        assert torch.equal(runtimes(x), x * 2)
    assert runtimes.chosen == {"single": "reference", "many": "quick"}
    assert torch.equal(runtimes(x), x * 2.001)
    assert torch.equal(runtimes(x[:1]), x[:1] * 2), "single inputs have a race of their own"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda x: x * 2.1, id="too far off"),
        pytest.param(lambda x: x * torch.nan, id="not a number"),
        pytest.param(lambda x: x[:, :1], id="of another shape"),
        pytest.param(raising, id="that fails"),
    ],
)
def test_a_way_is_never_taken_whose_outputs_are(wrong: object) -> None:
    runtimes = Runtimes(slow, [Way("wrong", wrong, 0.01)])  # type: ignore[arg-type]
    x = torch.rand(3, 2)
    for _ in range(TRIALS + 2):
        assert torch.equal(runtimes(x), x * 2)
    assert runtimes.chosen["many"] == "reference"


def test_a_way_that_is_not_worth_it_is_left() -> None:
    runtimes = Runtimes(lambda x: x * 2, [Way("slow", slow, 0.01)])
    for _ in range(TRIALS + 1):
        runtimes(torch.rand(3, 2))
    assert runtimes.chosen["many"] == "reference"


def test_a_way_that_fails_once_it_was_chosen_is_replaced_by_the_reference() -> None:
    calls: list[int] = []

    def fragile(x: Tensor) -> Tensor:
        calls.append(1)
        return x * 2 if len(calls) <= TRIALS else raising(x)

    runtimes = Runtimes(slow, [Way("fragile", fragile, 0.01)])
    x = torch.rand(3, 2)
    for _ in range(TRIALS + 2):
        assert torch.equal(runtimes(x), x * 2)
    assert len(calls) == TRIALS + 1
    assert runtimes.chosen["many"] == "reference"


def test_bfloat16_is_near_float32_and_not_the_same() -> None:
    trained = train(width=64).trained
    inputs = trained.codec.read_inputs([{"a": 0.5, "b": -0.2, "kind": "x"}] * 3)
    batch = trained.codec.encode_inputs(inputs).batch(torch.arange(3))
    with torch.inference_mode():
        exact = as_it_stands(trained)(*batch.inputs)
        rough = in_bfloat16(trained).forward(*batch.inputs)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.02 * float(exact.abs().max()))


@pytest.mark.slow
def test_onnx_runtime_gives_what_torch_gives(tmp_path: Path) -> None:
    spec, trained, _ = train()
    save_weights(trained.learner.state_dict(), tmp_path / "weights")
    task = spec.task.model_dump(mode="json")
    source = Source(task, trained.codec.model_dump(mode="json"), tmp_path / "weights")
    rows = [{"a": n / 7, "b": -n / 5, "kind": "x"} for n in range(5)]
    columns = trained.codec.encode_inputs(trained.codec.read_inputs(rows))
    exporter = Exporter(tmp_path / "networks", int8=True)
    ways: list[Way] = []
    exporter.submit(source, columns, ways.append)
    exporter.finish()
    assert [way.name for way in ways] == ["network.onnx", "int8.onnx"]
    for size in (1, 5):
        inputs = columns.batch(torch.arange(size)).inputs
        expected = as_it_stands(trained)(*inputs).detach()
        for way, off in zip(ways, (1e-6, 0.2), strict=True):  # 8 bits are few for a layer of 8
            found = way.forward(*inputs)
            assert torch.allclose(found, expected, atol=off * float(expected.abs().max())), way.name
    assert list((tmp_path / "networks").iterdir()) == []
