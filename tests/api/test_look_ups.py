"""Look-ups: one at a time for each key, remembered for a moment, and forgotten when they may be wrong."""

import asyncio
from threading import Event

import pytest

from api.look_ups import LookUps


class Registry:
    """Says how often it was asked; an answer waits until it may go."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = Event()
        self.go.set()

    def look_up(self, key: str) -> str:
        self.asked += 1
        answer = f"{key} {self.asked}"
        assert self.go.wait(10)
        if key == "nobody":
            raise KeyError(key)
        return answer


def test_many_who_ask_at_once_share_a_look_up() -> None:
    registry = Registry()

    async def ask() -> list[str]:
        known = LookUps(registry.look_up, seconds=60, ahead=0.5)
        found = await asyncio.gather(*(known.get("me") for _ in range(20)))
        return [*found, await known.get("me")]

    assert set(asyncio.run(ask())) == {"me 1"}


def test_what_was_found_before_it_was_forgotten_is_not_remembered() -> None:
    registry = Registry()

    async def ask() -> tuple[str, str]:
        known = LookUps(registry.look_up, seconds=60, ahead=0.5)
        registry.go.clear()
        early = asyncio.create_task(known.get("me"))
        while not registry.asked:
            await asyncio.sleep(0.001)
        known.forget()
        registry.go.set()
        return await early, await known.get("me")

    assert asyncio.run(ask()) == ("me 1", "me 2")


def test_only_what_is_meant_is_forgotten() -> None:
    registry = Registry()

    async def ask() -> list[str]:
        known = LookUps(registry.look_up, seconds=60, ahead=0.5)
        await known.get("you"), await known.get("me")
        known.forget(lambda found: found.startswith("me"))
        return [await known.get("you"), await known.get("me")]

    assert asyncio.run(ask()) == ["you 1", "me 3"]


def test_a_key_that_is_asked_for_near_its_end_is_looked_up_ahead() -> None:
    registry = Registry()

    async def ask() -> list[str]:
        known = LookUps(registry.look_up, seconds=60, ahead=1.0)
        found = [await known.get("me"), await known.get("me")]
        while registry.asked < 2:
            await asyncio.sleep(0.001)
        return found

    assert asyncio.run(ask()) == ["me 1", "me 1"]


def test_nothing_is_remembered_of_a_failure() -> None:
    registry = Registry()

    async def ask() -> None:
        known = LookUps(registry.look_up, seconds=60, ahead=0.5)
        for _ in range(2):
            with pytest.raises(KeyError):
                await known.get("nobody")

    asyncio.run(ask())
    assert registry.asked == 2
