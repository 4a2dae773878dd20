"""A head that learns alone: features computed once, and what answers from them."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from models.base import NotTransferable, Supervised
from tasks.parts.columns import Columns, Dense
from tasks.trained import Trained

_PIECE = 2048
"""Examples whose features are in memory at once."""


def probe(learner: Any) -> Supervised:
    """The learner, told to learn from features. Raises NotTransferable where these are not all that the head needs."""
    plain = Supervised.forward, Supervised.predict
    if not isinstance(learner, Supervised) or plain != (
        type(learner).forward,
        type(learner).predict,
    ):
        raise NotTransferable("this network's head takes more than features: linear_probe = false")
    own = {*learner.backbone.parameters(), *learner.head.parameters()}
    if not own.issuperset(learner.parameters()):
        message = "weights that learn stand between this network's backbone and its head"
        raise NotTransferable(f"{message}: linear_probe = false")
    learner.probed = True
    return learner


def features(trained: Trained, columns: Columns) -> Iterator[Columns | None]:
    """The features (N, D) of all examples, in pieces; None after each batch."""
    for index in torch.arange(columns.examples).split(_PIECE):
        piece = columns.select(index)
        found = torch.empty(0)
        for places, seen in trained.features(piece):
            if not len(found):
                found = torch.zeros(piece.examples, *seen.shape[1:])
            found[places] = seen
            yield None
        yield Columns((Dense(found),))


def fingerprint(network: nn.Module) -> str:
    """The same for networks of one kind exactly if no bit of their weights differs."""
    digest = sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
