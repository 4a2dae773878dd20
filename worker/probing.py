"""Trainings of a head alone: what its backbone makes of every split, computed once and kept beside encoded splits."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from tasks.parts.columns import Columns
from tasks.parts.probing import features, fingerprint, probe
from tasks.trained import Trained
from worker.desk import Desk
from worker.encoded import columns_name
from worker.loop import Split
from worker.remembering import Source


def probed(
    trained: Trained, splits: Mapping[str, Split], sources: Mapping[str, Source], desk: Desk
) -> tuple[Trained, dict[str, Split]]:
    """The training with features in the place of what they are computed from. Raises NotTransferable and Told.

    What they are is a function of the split and of the backbone's weights, by which they are named: other
    trainings of a head on the same backbone find them.
    """
    learner = probe(trained.learner)
    learner.to(desk.device)
    # Devices of different kinds round differently.
    kind = torch.device(desk.device).type
    by = f"features on {kind} of {fingerprint(learner.backbone)} {trained.task.model_dump_json()}"
    codec = trained.codec.model_dump_json()
    seen = {
        name: _seen(
            trained, split, columns_name(sources[name].name, by, codec), learner.beside, desk
        )
        for name, split in splits.items()
    }
    return replace(trained, forward=learner.answer), seen


def _seen(trained: Trained, split: Split, name: str, beside: int, desk: Desk) -> Split:
    """A split with features, and the last `beside` of its inputs."""
    columns = split.columns

    def pieces() -> Iterator[Columns]:
        for piece in features(trained, columns):
            desk.go_on()
            if piece is not None:
                yield piece

    (found,) = desk.materials.columns(name, pieces, desk.go_on).inputs
    rest = columns.inputs[len(columns.inputs) - beside :]
    return replace(split, columns=Columns((found, *rest), columns.targets))
