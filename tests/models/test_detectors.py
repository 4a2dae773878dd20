"""Parts of detectors: overlaps, suppression, hills around centres, and answers matched to objects."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from models.parts.boxes import areas, centred, cornered, generalised_overlaps, overlaps, suppressed
from models.parts.center_points import CenterPoints, PointLoss, boxes_at, draw, focal
from models.parts.detection import Objects
from models.parts.neck import TopDown
from models.parts.set_prediction import SetLoss, SetPrediction, _costs, match, waves
from models.resnet import ResNet


def boxes(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    start = torch.rand(*shape, 2, generator=random) * 0.6
    return torch.cat([start, start + 0.05 + 0.35 * torch.rand(*shape, 2, generator=random)], -1)


def test_overlaps_are_shares_of_the_union() -> None:
    one = torch.tensor([0.0, 0, 2, 2])
    others = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [4, 0, 6, 2], [1, 1, 1, 1]])
    assert overlaps(one, others).tolist() == pytest.approx([1, 1 / 3, 0, 0, 0])
    # Two apart, they fill four of six.
    assert generalised_overlaps(one, others)[:4].tolist() == pytest.approx([1, 1 / 3, 0, -1 / 3])
    assert areas(others).tolist() == [4, 4, 4, 4, 0]


def test_corners_and_centres_are_two_names_of_a_box() -> None:
    torch.testing.assert_close(cornered(centred(boxes(50))), boxes(50))


def test_suppression_is_what_a_plain_loop_does() -> None:
    found = boxes(8, 60)
    classes = torch.randint(0, 3, (8, 60), generator=torch.Generator().manual_seed(0))
    gone = suppressed(found, classes, 0.3)
    assert 0.1 < gone.float().mean() < 0.9
    for image in range(8):
        kept: list[int] = []
        for place in range(60):
            rivals = [k for k in kept if classes[image, k] == classes[image, place]]
            if all(overlaps(found[image, k], found[image, place]) <= 0.3 for k in rivals):
                kept.append(place)
        assert (~gone[image]).nonzero().flatten().tolist() == kept


def objects(*marked: tuple[int, float, float, float, float]) -> Objects:
    values = torch.tensor(marked)
    return Objects(values[None, :, 1:], values[None, :, 0].long())


def test_an_object_is_a_hill_of_its_own_shape() -> None:
    like = torch.zeros(1, 6, 16, 16)
    drawn = draw(objects((1, 0.25, 0.5, 0.75, 0.75), (-2, 0, 0, 1, 1)), 2, like)
    assert drawn.heat[0, 0].max() == 0
    assert (drawn.heat[0, 1] == 1).nonzero().tolist() == [[10, 8]]
    wide, high = (drawn.heat[0, 1] > 0).any(0).sum(), (drawn.heat[0, 1] > 0).any(1).sum()
    assert wide > high
    assert drawn.shares.sum() == pytest.approx(1)
    told = drawn.boxes[0, :, 10, 8]
    assert told.tolist() == [0.25, 0.5, 0.75, 0.75]


def test_a_small_object_is_learned_where_it_hides_a_large_one() -> None:
    both = (0, 0.0, 0.0, 1.0, 1.0), (1, 0.4, 0.4, 0.6, 0.6)
    for order in (both, both[::-1]):
        drawn = draw(objects(*order), 2, torch.zeros(1, 6, 20, 20))
        assert drawn.boxes[0, :, 10, 10].tolist() == pytest.approx([0.4, 0.4, 0.6, 0.6])
        assert drawn.boxes[0, :, 6, 6].tolist() == [0, 0, 1, 1]


def test_an_object_smaller_than_a_place_still_has_one() -> None:
    drawn = draw(objects((0, 0.51, 0.51, 0.515, 0.515)), 1, torch.zeros(1, 5, 8, 8))
    assert (drawn.heat == 1).nonzero().tolist() == [[0, 0, 4, 4]]
    assert drawn.shares.sum() == pytest.approx(1)


def test_nothing_is_learned_in_a_crowd_unless_an_object_is_in_it() -> None:
    crowd = (-1, 0.0, 0.0, 0.5, 1.0)
    outputs = torch.zeros(1, 5, 8, 8, requires_grad=True)
    PointLoss()(outputs, objects(crowd, (0, 0.1, 0.1, 0.2, 0.2))).backward()
    assert outputs.grad is not None
    scores = outputs.grad[0, 0]
    assert scores[1, 1] != 0
    assert (scores[4:, :4] == 0).all()
    assert (scores[:, 4:] != 0).all()


def test_a_perfect_answer_costs_next_to_nothing() -> None:
    truth = objects((0, 0.25, 0.25, 0.75, 0.5))
    drawn = draw(truth, 1, torch.zeros(1, 5, 16, 16))
    scores = torch.where(drawn.heat == 1, 20.0, -20.0)
    sides = torch.full((1, 4, 16, 16), -9.0)
    place = ((torch.arange(16) + 0.5) / 16).expand(16, 16)
    reach = [place - 0.25, place.T - 0.25, 0.75 - place, 0.5 - place.T]
    sides = torch.stack([(r / 0.1).clamp(min=1e-3).log() for r in reach])[None]
    assert PointLoss()(torch.cat([scores, sides], 1), truth) < 1e-3
    assert PointLoss()(torch.cat([-scores, sides], 1), truth) > 10
    told = boxes_at(sides)[0, :, 6, 8]
    assert told.tolist() == pytest.approx([0.25, 0.25, 0.75, 0.5], abs=1e-5)


def test_near_a_centre_a_score_is_hardly_a_fault() -> None:
    scores, heat = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([0.0, 0.9, 1.0])
    far, near, at = focal(scores, heat).tolist()
    assert far > 100 * near
    assert at < far


def test_peaks_become_candidates_the_best_first() -> None:
    backbone = ResNet(depths=[1, 1], width=8).build(3, (64, 64))
    head = CenterPoints(width=8).head(backbone, 2, 64)
    outputs = torch.full((1, 6, 16, 16), -9.0)
    outputs[0, 1, 4, 6], outputs[0, 1, 4, 7], outputs[0, 0, 12, 2] = 1.0, 0.5, 3.0
    outputs[:, 2:] = 0.0
    found = head.candidates(outputs)
    assert found.classes[0, :2].tolist() == [0, 1]
    assert found.scores[0, :2].tolist() == pytest.approx([0.9526, 0.7311], abs=1e-4)
    assert found.boxes[0, 1].tolist() == pytest.approx(
        [6.5 / 16 - 0.1, 4.5 / 16 - 0.1, 6.5 / 16 + 0.1, 4.5 / 16 + 0.1]
    )
    assert found.scores[0, 2] < 0.01, "a slope is no peak"


def test_a_neck_gives_the_finest_map_asked_for_and_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    backbone = ResNet(depths=[1, 1, 1], width=8, norm="layer").build(3, (128, 128)).eval()
    neck = TopDown(backbone.widths, backbone.strides, 8, 128, 16)
    images = torch.zeros(1, 3, 128, 128)
    plain = neck(backbone.maps(images))
    assert plain.shape == (1, 16, 16, 16)
    images[0, :, -4:, -4:] = 5
    assert not torch.equal(neck(backbone.maps(images))[0, :, 0, 0], plain[0, :, 0, 0])


def test_answers_are_matched_so_that_all_together_cost_the_least() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(3, 2, 5, 3 + 4)
    classes = torch.tensor([[0, 2, 1], [1, -1, -2], [-2, -2, -2]])
    truth = Objects(boxes(3, 3), classes)
    rows, layers, queries, targets = match(outputs, truth)
    assert sorted(zip(rows.tolist(), layers.tolist(), targets.tolist(), strict=True)) == [
        *((0, layer, target) for layer in (0, 1) for target in (0, 1, 2)),
        (1, 0, 0),
        (1, 1, 0),
    ]
    costs = _costs(outputs, truth)
    for layer in (0, 1):
        mine = (rows == 0) & (layers == layer)
        paid = costs[0, layer, queries[mine], targets[mine]].sum()
        ways = permutations(range(5), 3)
        least = min(sum(costs[0, layer, q, t] for t, q in enumerate(way)) for way in ways)
        assert paid == pytest.approx(float(least))


def test_perfect_answers_cost_next_to_nothing() -> None:
    truth = Objects(boxes(1, 2), torch.tensor([[0, 1]]))
    scores = torch.full((1, 2, 4, 2), -20.0)
    scores[:, :, 3, 0] = scores[:, :, 1, 1] = 20.0
    sides = torch.zeros(1, 2, 4, 4)
    sides[:, :, [3, 1]] = centred(truth.boxes).logit()[:, None]
    assert SetLoss()(torch.cat([scores, sides], -1), truth) < 1e-3


def test_numbers_that_are_none_are_matched_all_the_same() -> None:
    outputs = torch.full((1, 1, 3, 5), torch.nan)
    assert not SetLoss()(outputs, objects((0, 0.1, 0.1, 0.2, 0.2))).isfinite()


def test_questions_are_asked_of_images_of_any_size() -> None:
    torch.manual_seed(0)
    backbone = ResNet(depths=[1, 1], width=8).build(3, (64, 64))
    head = SetPrediction(queries=7, width=16, heads=4).head(backbone, 2, 64)
    for size in ((64, 64), (32, 96)):
        outputs = head(backbone.maps(torch.rand(2, 3, *size)))
        assert outputs.shape == (2, 3, 7, 6)
        found = head.candidates(outputs)
        assert (found.scores.diff(dim=1) <= 0).all()
        assert found.boxes.shape == (2, 7, 4)
    with pytest.raises(ValueError, match="not a multiple"):
        SetPrediction(width=24, heads=5)


def test_places_that_are_near_have_waves_that_are_alike() -> None:
    at = waves(torch.tensor([[0.5, 0.5], [0.52, 0.5], [0.9, 0.1]]), 32)
    assert at.shape == (3, 32)
    assert at[0] @ at[1] > at[0] @ at[2]
