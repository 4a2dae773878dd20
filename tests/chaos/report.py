"""What happened in a performance, and what was wrong with it, for people."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Report:
    """What happened, and what was wrong with it."""

    strikes: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    """{"order: how it ended": jobs}"""
    runs: int = 0
    waits: list[float] = field(default_factory=list)
    """Seconds from the end of a run that did not end its job to the next one."""
    drained: float = 0.0
    """Seconds from the last strike to the end of the last job."""
    tries: Counter[str] = field(default_factory=Counter)
    """{status or error: tries of requests}"""
    repeated: int = 0
    writes: int = 0
    """Of running jobs, as the database saw them."""
    messages: int = 0
    """To webhooks, `resent` ones among them."""
    resent: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        waits = self.waits or [0.0]
        return "\n".join(
            [
                *_counted("faults", self.strikes),
                *_counted("jobs", self.ends),
                *_counted("tries of requests", self.tries),
                f"{self.repeated} tries were repetitions",
                f"{self.runs} runs; {len(self.waits)} times a job waited for its next one, "
                f"{waits[len(waits) // 2]:.1f} s (median), {waits[-1]:.1f} s (at most)",
                f"{self.writes} writes were watched",
                f"{self.messages} messages came to webhooks, {self.resent} of them again",
                f"the last job ended {self.drained:.0f} s after the last fault",
                f"{len(self.violations)} VIOLATIONS" if self.violations else "no violation",
                *(f"  {text}" for text in self.violations),
            ]
        )


def _counted(title: str, numbers: Mapping[str, int]) -> list[str]:
    rows = [f"{number:8d}  {name}" for name, number in sorted(numbers.items())]
    return [f"{sum(numbers.values()):8d}  {title}", *rows, ""]
