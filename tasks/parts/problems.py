"""What is wrong with data or a request, told so that a user can mend it."""

from typing import Any, NamedTuple


class Problem(NamedTuple):
    """One fault: where it is, what it is, what was found and what would be allowed."""

    loc: tuple[str | int, ...]
    msg: str
    found: Any = None
    allowed: Any = None


class Invalid(ValueError):
    """Data or a request that cannot be used; carries every problem found, at most a hundred."""

    LIMIT = 100

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems[: self.LIMIT]
        super().__init__("; ".join(describe(problem) for problem in self.problems[:3]))


def describe(problem: Problem) -> str:
    """A problem as one sentence."""
    place = ".".join(map(str, problem.loc))
    found = f", found {problem.found!r}" if problem.found is not None else ""
    allowed = f", allowed: {problem.allowed}" if problem.allowed is not None else ""
    return f"{place}: {problem.msg}{found}{allowed}"


def short(value: Any) -> str:
    """A value as a problem shows it."""
    return repr(value)[:80]
