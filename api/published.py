"""Published checkpoints that requests begin with: looked up before their transaction, as a hub may take seconds."""

import time
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from fastapi import Request

from api.auth import Principal
from api.cache import Cache
from api.settings import ApiSettings
from models.parts.pretrained import Pretrained
from models.parts.published import Published, Unusable, from_hub, is_light, is_uploaded
from store import pretrained
from store.errors import NotFound
from store.session import Database
from tasks.base import Task
from tasks.catalog import grounded
from tasks.parts.problems import Invalid

_KEPT_SECONDS = 60.0
Find = Callable[[Pretrained], Published]


class _Wanted(NamedTuple):
    project_id: str
    checkpoint: str
    revision: str | None


class Shelf:
    """What published checkpoints say of themselves, for a minute; their weights are left to those who train."""

    def __init__(
        self, database: Database, cache: Cache, folder: Path, settings: ApiSettings
    ) -> None:
        self._database, self._cache, self._folder = database, cache, folder
        self._allowed = settings.hub_checkpoints
        self._found: dict[_Wanted, tuple[float, Published]] = {}

    def of(self, project_id: str) -> Find:
        """What finds a checkpoint for a project; it raises Unusable."""

        def find(architecture: Pretrained) -> Published:
            return self._find(_Wanted(project_id, architecture.checkpoint, architecture.revision))

        return find

    def look_ahead(self, project_id: str, task: Task | None) -> None:
        """Look up what a task begins with, if anything; what is wrong with it is told later, in its place."""
        if task is not None:
            with suppress(Invalid, NotFound):
                grounded(task, self.of(project_id))

    def _find(self, wanted: _Wanted) -> Published:
        self._forget()
        if wanted not in self._found:
            uploaded = is_uploaded(wanted.checkpoint)
            found = self._uploaded(wanted) if uploaded else self._of_hub(wanted)
            self._found[wanted] = (time.monotonic() + _KEPT_SECONDS, found)
        return self._found[wanted][1]

    def _forget(self) -> None:
        now = time.monotonic()
        self._found = {wanted: (end, it) for wanted, (end, it) in self._found.items() if end > now}

    def _of_hub(self, wanted: _Wanted) -> Published:
        if not any(fnmatch(wanted.checkpoint, pattern) for pattern in self._allowed):
            allowed = ", ".join(self._allowed) or "none, but those that were uploaded"
            raise Unusable(f"this service lets jobs begin with other checkpoints only: {allowed}")
        return from_hub(wanted.checkpoint, wanted.revision, weights=False)

    def _uploaded(self, wanted: _Wanted) -> Published:
        if wanted.revision is not None:
            raise Unusable("what was uploaded has no revisions")
        with self._database.transaction(read_only=True) as session:
            pretrained.get(session, wanted.project_id, wanted.checkpoint)
            files = pretrained.files(session, wanted.checkpoint)
        folder = self._folder / wanted.checkpoint
        for name, blob_id in files.items():
            path = folder / name
            if is_light(name) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._cache.path(blob_id).read_bytes())
        return Published(folder)


def finding(request: Request, principal: Principal, task: Task | None) -> Find:
    """What finds published checkpoints for this request, with that of `task` looked up already."""
    shelf: Shelf = request.app.state.shelf
    shelf.look_ahead(principal.project_id, task)
    return shelf.of(principal.project_id)
