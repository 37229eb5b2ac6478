"""Passages of a corpus on disk, and the ways to search them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from sod.envs.text_index import TextIndex, TitledText, file_fingerprint, index_file
from sod.errors import ConfigError, DataError

Retriever = Literal["fts5", "bm25s"]


class PassageIndex(Protocol):
    """Finds passages."""

    def search(self, query: str, limit: int) -> list[TitledText]:
        """Give at most `limit` passages, the best first."""

    def close(self) -> None:
        """Free what the index holds."""


def open_passages(corpus: Path, *, retriever: Retriever, cache: Path) -> PassageIndex:
    """Open the index of a corpus; SQLite's is built once and kept.

    Args:
        corpus: See `read_passages`.
        retriever: "fts5" searches a file with SQLite; "bm25s" holds everything in memory.
        cache: Folder of index files, made where absent.

    Returns:
        The index.

    Raises:
        ConfigError: bm25s is not installed.
        DataError: The corpus is missing, empty, or not readable.
    """
    if not corpus.is_file():
        raise DataError(f"open_passages: the corpus {corpus} does not exist; give a .jsonl or .tsv file.")
    if retriever == "bm25s":
        return BM25SIndex(list(read_passages(corpus)))
    return TextIndex(index_file(read_passages(corpus), file_fingerprint([corpus]), cache=cache))


def read_passages(corpus: Path) -> Iterator[tuple[str, str]]:
    r"""Read a corpus, passage by passage.

    Args:
        corpus: A `.jsonl` file with `title` and `text`, or with `contents` whose first line is the title in
            quotes (the wiki-18 corpus of Search-R1); or a `.tsv` file with the columns `text` and `title`
            (the passages of DPR).

    Yields:
        Title and text.

    Raises:
        DataError: Naming file and row, for a row in another form.
    """
    if corpus.suffix == ".jsonl":
        yield from _jsonl_passages(corpus)
    elif corpus.suffix == ".tsv":
        yield from _tsv_passages(corpus)
    else:
        raise DataError(f"read_passages: {corpus} must be a .jsonl or .tsv file.")


class BM25SIndex:
    """Search with the bm25s library, everything in memory."""

    def __init__(self, passages: list[tuple[str, str]]) -> None:
        """Index the passages.

        Args:
            passages: Title and text of each.

        Raises:
            ConfigError: bm25s is not installed.
            DataError: There are no passages.
        """
        try:
            import bm25s
        except ModuleNotFoundError as error:
            raise ConfigError(
                '[environment] retriever = "bm25s": the package bm25s is not installed; '
                'run: pip install bm25s, or take "fts5"'
            ) from error
        if not passages:
            raise DataError("BM25SIndex: there are no passages to index; give a corpus with at least one.")
        self._library: Any = bm25s
        self._passages = passages
        self._index: Any = bm25s.BM25()
        texts = [f"{title} {text}" for title, text in passages]
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def search(self, query: str, limit: int) -> list[TitledText]:
        """Find the passages that fit a query best; see `TextIndex.search`."""
        tokens = self._library.tokenize([query], show_progress=False)
        count = min(limit, len(self._passages))
        found, scores = self._index.retrieve(tokens, k=count, show_progress=False)
        return [
            TitledText(number=int(number), title=self._passages[number][0], text=self._passages[number][1])
            for number, score in zip(found[0], scores[0], strict=True)
            if score > 0
        ]

    def close(self) -> None:
        """Do nothing: the memory goes with the object."""


def _jsonl_passages(corpus: Path) -> Iterator[tuple[str, str]]:
    with corpus.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"read_passages: {corpus} row {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where} is not valid JSON: {error}.") from error
            yield _passage(row, where)


def _passage(row: Any, where: str) -> tuple[str, str]:
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return str(row.get("title") or ""), row["text"]
    if isinstance(row, dict) and isinstance(row.get("contents"), str):
        title, _, text = row["contents"].partition("\n")
        return title.strip().strip('"'), text
    got = sorted(row) if isinstance(row, dict) else type(row).__name__
    raise DataError(f"{where} has {got}; wanted the texts `title` and `text`, or `contents`.")


def _tsv_passages(corpus: Path) -> Iterator[tuple[str, str]]:
    # A passage may be longer than what the csv module takes for a field by default.
    csv.field_size_limit(sys.maxsize)
    with corpus.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        for number, row in enumerate(rows, start=1):
            text, title = row.get("text"), row.get("title")
            if text is None or title is None:
                raise DataError(
                    f"read_passages: {corpus} row {number} has the columns {rows.fieldnames}; wanted `text` "
                    "and `title` in the first line."
                )
            yield title, text
