"""Verdicts of judges, kept on disk, so that no completion is judged twice."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

_log = logging.getLogger("retrain")

_FILE = "verdicts.sqlite"
_BUSY_S = 30.0


class JudgeCache:
    """Key -> number, in one SQLite file that several workers may read and write at once.

    A cache that fails (a full disk, a damaged file) is told once and then done without: it can
    only cost requests.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._broken = False

    def get(self, key: str) -> float | None:
        """What was put under `key`, by any process; None when nothing was."""
        with self._lock:
            try:
                if (connection := self._connect()) is None:
                    return None
                row = connection.execute("SELECT score FROM verdicts WHERE key = ?", (key,))
                found = row.fetchone()
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)
                return None
        return None if found is None else float(found[0])

    def put(self, key: str, score: float) -> None:
        """Keep a verdict; the first one under a key stays."""
        with self._lock:
            try:
                if (connection := self._connect()) is None:
                    return
                with connection:
                    connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, score))
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection | None:
        if self._broken or self._connection is not None:
            return self._connection
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False)
        self._connection = connection
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, score REAL NOT NULL) "
                "WITHOUT ROWID"
            )
        return connection

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        _log.warning(
            "judge: verdicts are not kept any more, as %s fails (%s); remove the file if it is "
            "damaged, or set [reward].cache_dir",
            self._path,
            error,
        )
