"""What a JSON schema allows at a place: what an error message lists beside what it found."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel


class Schema(NamedTuple):
    """A JSON schema, and the document that its references point into."""

    node: Mapping[str, Any]
    document: Mapping[str, Any]

    @classmethod
    def of(cls, model: type[BaseModel]) -> "Schema":
        whole = model.model_json_schema()
        return cls(whole, whole)

    def at(self, way: Sequence[str | int], value: Any) -> "Schema":
        """The schema of what lies at the end of `way` in `value`, which decides between branches."""
        schema = self
        for step in way:
            schema = schema._chosen(value)._child(step)
            value = value[step] if holds(value, step) else None
        return schema

    def names(self) -> list[str]:
        """The names that tell the options of a union apart."""
        mappings = (
            branch.get("discriminator", {}).get("mapping", {}) for branch in self._branches()
        )
        return sorted(name for mapping in mappings for name in mapping)

    def fields(self, value: Any) -> list[str]:
        """The fields that an object may have."""
        return sorted(self._chosen(value).node.get("properties", {}))

    def _chosen(self, value: Any) -> "Schema":
        """The branch that an object means: by its `name`, or the one that is an object at all."""
        name = value.get("name") if isinstance(value, dict) else None
        for branch in self._branches():
            target = branch.get("discriminator", {}).get("mapping", {}).get(str(name))
            if target is not None:
                return self._replace(node=self._target({"$ref": target}))
            if "properties" in branch or "items" in branch:
                return self._replace(node=branch)
        return self

    def _child(self, step: str | int) -> "Schema":
        if isinstance(step, int):
            return self._replace(node=self.node.get("items", {}))
        return self._replace(node=self.node.get("properties", {}).get(step, {}))

    def _branches(self) -> Iterator[Mapping[str, Any]]:
        node = self._target(self.node)
        yield node
        for branch in node.get("anyOf", ()):
            yield from self._replace(node=branch)._branches()

    def _target(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """The node itself, or what it refers to."""
        while "$ref" in node:
            found: Any = self.document
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            node = found
        return node


def holds(value: Any, step: str | int) -> bool:
    """Whether `value[step]` is there."""
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value
