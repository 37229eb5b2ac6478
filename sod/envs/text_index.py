"""Full-text search over titled texts: an SQLite file with an FTS5 table, built once and kept."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sod.errors import DataError

_WORD = re.compile(r"\w+")
# Left out of a query that has other words: they cost most of its time and tell nothing apart.
_STOP_WORDS_TEXT = """
a an and are as at be been but by did do does for from had has have he her his how i if in is it its me my of
on or she that the their them they this to was we were what when where which who whom whose why will with
would you your
"""
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
_SAMPLE_BYTES = 65536
_SCHEMA = (
    "CREATE VIRTUAL TABLE texts USING fts5(title, text, tokenize='porter unicode61 remove_diacritics 2')"
)
_QUERY = "SELECT rowid, title, text FROM texts WHERE texts MATCH ? ORDER BY rank, rowid LIMIT ?"


@dataclass(frozen=True, kw_only=True)
class TitledText:
    """One entry of an index.

    Attributes:
        number: Its place in what was indexed, from 0.
        title: Its title, maybe empty.
        text: Its text.
    """

    number: int
    title: str
    text: str


class TextIndex:
    """Ranked search (BM25) in an index file; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Open an index.

        Args:
            path: A file that `index_file` made.

        Raises:
            DataError: The file is no such index.
        """
        self._path = path
        self._lock = threading.Lock()
        self._own = threading.local()
        self._connections: list[sqlite3.Connection] = []
        try:
            (self.num_texts,) = self._connection().execute("SELECT max(rowid) FROM texts").fetchone()
        except sqlite3.DatabaseError as error:
            self.close()
            raise DataError(
                f"TextIndex: {path} is no index: {error}; delete it to have it rebuilt."
            ) from error

    def search(self, query: str, limit: int) -> list[TitledText]:
        """Find the texts that fit a query best.

        Args:
            query: Any text; its words count, no operators.
            limit: Most texts to give, at least 1.

        Returns:
            The best first; none where no word of the query occurs.
        """
        words = [word.lower() for word in _WORD.findall(query)]
        words = [word for word in words if word not in _STOP_WORDS] or words
        if not words:
            return []
        pattern = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
        rows = self._connection().execute(_QUERY, (pattern, limit)).fetchall()
        return [TitledText(number=row - 1, title=title, text=text) for row, title, text in rows]

    def close(self) -> None:
        """Close the file; harmless twice."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _connection(self) -> sqlite3.Connection:
        """One connection per thread: SQLite then searches in all of them at the same time."""
        if not hasattr(self._own, "connection"):
            address = f"{self._path.resolve().as_uri()}?mode=ro"
            connection = sqlite3.connect(address, uri=True, check_same_thread=False)
            with self._lock:
                self._connections.append(connection)
            self._own.connection = connection
        made: sqlite3.Connection = self._own.connection
        return made


def index_file(texts: Iterable[tuple[str, str]], fingerprint: str, *, cache: Path) -> Path:
    """Give the index of some texts, built where it is not there yet.

    Args:
        texts: Title and text of each entry; only read where the index must be built.
        fingerprint: Says what the texts are; another fingerprint is another index.
        cache: Folder of the index, made where absent.

    Returns:
        The file.

    Raises:
        DataError: There are no texts, or SQLite cannot index here.
    """
    path = cache / f"texts-{hashlib.blake2b(fingerprint.encode(), digest_size=10).hexdigest()}.sqlite"
    if path.is_file():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as folder:
        made = Path(folder) / path.name
        _build(made, texts)
        made.replace(path)
    return path


def file_fingerprint(paths: Sequence[Path]) -> str:
    """Say which files these are, without reading them whole: sizes, times, beginnings and ends.

    Args:
        paths: Files that exist.

    Returns:
        A text that changes when a file is changed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, status.st_size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _build(path: Path, texts: Iterable[tuple[str, str]]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        # The file is thrown away if anything goes wrong, so there is nothing to recover.
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(_SCHEMA)
        connection.execute("BEGIN")
        rows: Iterator[tuple[str, str]] = iter(texts)
        connection.executemany("INSERT INTO texts (title, text) VALUES (?, ?)", rows)
        connection.execute("COMMIT")
        is_empty = connection.execute("SELECT max(rowid) FROM texts").fetchone() == (None,)
    except sqlite3.DatabaseError as error:
        raise DataError(f"index_file: SQLite cannot build {path.name}: {error}") from error
    finally:
        connection.close()
    if is_empty:
        raise DataError("index_file: there are no texts to index; give a corpus with at least one.")
