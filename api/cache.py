"""Stored files on this machine's disk, for as long as there is room."""

import contextlib
import os
import time
from pathlib import Path

from api.errors import is_full
from store import blobs
from store.session import Database

_IN_USE_SECONDS = 60


class Cache:
    """Blobs as files, together about `limit` bytes; those go first that nobody has asked for longest."""

    def __init__(self, database: Database, folder: Path, limit: int) -> None:
        self._database, self._folder, self._limit = database, folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, blob_id: str) -> Path:
        """The file of a blob. Raises NotFound."""
        path = self._folder / blob_id
        if path.is_file():
            os.utime(path)
        else:
            self._fetch(blob_id, path)
            self._make_room(self._limit)
        return path

    def _fetch(self, blob_id: str, path: Path) -> None:
        try:
            blobs.fetch(self._database, blob_id, path)
        except OSError as error:
            if not is_full(error):
                raise
            self._make_room(0)  # it may be full of what nobody has asked for lately
            blobs.fetch(self._database, blob_id, path)

    def _make_room(self, limit: int) -> None:
        # Another process may tidy the same folder.
        with contextlib.suppress(FileNotFoundError):
            stats = {path: path.stat() for path in self._folder.iterdir()}
            size = sum(stat.st_size for stat in stats.values())
            for path in sorted(stats, key=lambda path: stats[path].st_mtime):
                if size <= limit or stats[path].st_mtime > time.time() - _IN_USE_SECONDS:
                    return
                path.unlink()
                size -= stats[path].st_size
