"""What can go wrong with the database's rows, told so that a user understands it."""


class StoreError(Exception):
    """Anything the store refuses."""


class NotFound(StoreError):
    """Nothing of this kind and name is there for this project."""

    def __init__(self, kind: str, ref: str) -> None:
        self.kind, self.ref = kind, ref
        super().__init__(f"There is no {kind} {ref!r}.")


class Conflict(StoreError):
    """What was asked for is not possible in the present state; the message says why."""


class Fenced(StoreError):
    """The lease was lost, so nothing was written."""
