"""What architectures share that begin with published weights."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field
from torch import nn

from models.parts.options import Plain
from models.parts.published import Published, Unusable

if TYPE_CHECKING:
    from models.base import Learner

_FOREIGN = ("auto_map", "quantization_config", "_name_or_path", "dtype", "torch_dtype")
"""What a configuration says of the code, the place and the numbers of others."""


class Pretrained(Plain):
    """Fields that say where a network's first weights are, and once they were looked up, what the network is.

    With `config`, everything is known that `build` needs: a trained model is served without the hub.
    """

    checkpoint: str = Field(
        min_length=1,
        max_length=200,
        description="A checkpoint of the Hugging Face Hub, such as `org/name`, or one that was uploaded: `pre_...`.",
    )
    revision: str | None = Field(
        None,
        max_length=200,
        description="A branch, tag or commit of it; the newest if left out. `resolved` says which commit that is.",
    )
    config: dict[str, Any] | None = Field(
        None, description="What the checkpoint says of its network; read from it."
    )

    model_types: ClassVar[tuple[str, ...]] = ()
    """The kinds of network it can be; empty: whatever its `transformers` class knows."""

    def grounded(self, published: Published) -> Self:
        """A copy that says exactly what it begins with. Raises Unusable for what it cannot be."""
        config = {name: v for name, v in published.config.items() if name not in _FOREIGN}
        self.vouch_for(config)
        return self.model_copy(update={"config": config, "revision": published.revision})

    def vouch_for(self, config: Mapping[str, Any]) -> None:
        """Raises Unusable for a configuration that is not one of these networks, or tells of others' code."""
        kind, foreign = config.get("model_type"), [name for name in _FOREIGN if name in config]
        if foreign:
            raise Unusable(f"its configuration says {', '.join(foreign)}, which nobody here reads")
        if self.model_types and kind not in self.model_types:
            raise Unusable(f"it is of kind {kind}; allowed are {', '.join(self.model_types)}")

    @property
    def returns(self) -> bool:
        """Whether what it has learned can be put back into the network as it was published."""
        return False

    def network_of(self, learner: "Learner") -> nn.Module:
        """The published network in a learner, with what it has learned; of architectures that give it back."""
        raise NotImplementedError

    @abstractmethod
    def begin(self, learner: "Learner", published: Published) -> None:
        """Give a learner's backbone the published weights. Raises Unusable when they do not fit."""
