"""A teacher whose scores are kept on disk: asked once for a text, also by the next run.

What is kept are the `num_top` most likely ids of every response token and the sampled one, under a key of the
teacher's fingerprint, the ids that it read and the places that it scored. Numbers are kept as they are, so a
run that is resumed reads what it would have computed.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sod.errors import DataError
from sod.packing import Batch
from sod.scoring import TeacherScores, TopScores, logits_of
from sod.teacher.base import AnyTeacher, Capability, ListingTeacher, teacher_scores

SCORES_FILE = "scores.sqlite"
_HEADER = struct.Struct("<II")
_BYTES_PER_ENTRY = 8
_LOCK_WAIT_S = 60.0


class KeptTeacher:
    """Lists what another teacher gives, and keeps it.

    Attributes:
        teacher: The one that is asked for what is not there.
        num_asked: Sequences that it was asked for.
        num_damaged: Of those, the ones that were there and could not be read.
    """

    def __init__(
        self, teacher: AnyTeacher, folder: Path, *, fingerprint: str, num_top: int, vocab_size: int
    ) -> None:
        """Prepare; nothing is opened before the first question.

        Args:
            teacher: Any teacher that does not change.
            folder: Where the scores are; made where absent. Several teachers and runs may share it.
            fingerprint: Tells this teacher from others, such as `LocalTeacher.fingerprint`.
            num_top: Most likely ids kept per token, beside the sampled one.
            vocab_size: Ids that are tokens.
        """
        self.teacher = teacher
        self.num_asked = self.num_damaged = 0
        self._path = folder / SCORES_FILE
        self._identity = f"{fingerprint}:{num_top}:{vocab_size}".encode()
        self._num_top = num_top
        self._vocab_size = vocab_size
        self._open: sqlite3.Connection | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The sampled id always, others with `num_top` above 0; never full logits."""
        listed = {Capability.TOP_K, Capability.SAMPLED} if self._num_top else {Capability.SAMPLED}
        return self.teacher.capabilities & listed

    def top_scores(self, batch: Batch) -> TeacherScores:
        """Score the rows of a batch; see `sod.teacher.base.ListingTeacher.top_scores`.

        Raises:
            DataError: The file cannot be read or written.
        """
        places = _places(batch)
        keys = {sequence: self._key(batch, sequence, rows) for sequence, rows in places.items()}
        try:
            found = {sequence: self._read(key, len(places[sequence])) for sequence, key in keys.items()}
            missing = [sequence for sequence, scores in found.items() if scores is None]
            if missing:
                found |= self._ask(batch, missing)
                self._write({keys[sequence]: found[sequence] for sequence in missing})
        except sqlite3.Error as error:
            raise DataError(
                f"[teacher] scores in {self._path}: {error}. Free disk space, or remove the file if it is "
                'damaged; its scores are then made again. Or set keep_scores = "round".'
            ) from error
        return _joined([found[sequence] for sequence in places], batch.rows.device)

    def close(self) -> None:
        """Close the file and the teacher."""
        if self._open is not None:
            self._open.close()
            self._open = None
        if isinstance(self.teacher, ListingTeacher):
            self.teacher.close()

    def _key(self, batch: Batch, sequence: int, rows: Sequence[int]) -> bytes:
        # Nothing behind the last response token is read.
        ids = batch.input_ids[sequence, : rows[-1] + 2].to("cpu", torch.int64)
        digest = hashlib.blake2b(self._identity, digest_size=32)
        digest.update(ids.numpy().tobytes())
        digest.update(b"|")
        digest.update(torch.tensor(rows).numpy().tobytes())
        return digest.digest()

    def _ask(self, batch: Batch, sequences: Sequence[int]) -> dict[int, TopScores]:
        self.num_asked += len(sequences)
        part = _part(batch, sequences)
        scores = teacher_scores(self.teacher, part)
        listed = scores if isinstance(scores, TopScores) else self._listed(logits_of(scores), part.labels)
        counts = [len(rows) for rows in _places(part).values()]
        columns = zip(torch.split(listed.log_probs, counts), torch.split(listed.ids, counts), strict=True)
        each = [TopScores(log_probs=log_probs.cpu(), ids=ids.cpu()) for log_probs, ids in columns]
        return dict(zip(sequences, each, strict=True))

    def _listed(self, logits: Tensor, labels: Tensor) -> TopScores:
        log_probs = logits[:, : self._vocab_size].float().log_softmax(dim=-1)
        top = log_probs.topk(min(self._num_top, log_probs.shape[1]), dim=-1)
        labels = labels[:, None].to(log_probs.device)
        sampled, is_there = log_probs.gather(1, labels), (top.indices == labels).any(1, keepdim=True)
        return TopScores(
            log_probs=torch.cat([top.values, sampled.masked_fill(is_there, -torch.inf)], dim=1),
            ids=torch.cat([top.indices, labels.masked_fill(is_there, -1)], dim=1),
        )

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open = sqlite3.connect(self._path, timeout=_LOCK_WAIT_S)
            self._open.execute("PRAGMA journal_mode = WAL")
            self._open.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, payload BLOB, checksum BLOB)"
            )
        return self._open

    def _read(self, key: bytes, num_rows: int) -> TopScores | None:
        query = "SELECT payload, checksum FROM scores WHERE key = ?"
        entry = self._connection().execute(query, (key,)).fetchone()
        if entry is None:
            return None
        payload, checksum = entry
        scores = _unpacked(payload, checksum, num_rows)
        if scores is None:
            self.num_damaged += 1
            warnings.warn(f"{self._path}: a damaged entry is made again", RuntimeWarning, stacklevel=2)
        return scores

    def _write(self, made: Mapping[bytes, TopScores | None]) -> None:
        # A broken teacher is not kept: it stops the run, and is asked again once it is mended.
        sound = {key: scores for key, scores in made.items() if scores and not scores.log_probs.isnan().any()}
        packed = [(key, _packed(scores)) for key, scores in sound.items()]
        with self._connection() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?)",
                [(key, payload, _checksum(payload)) for key, payload in packed],
            )


def _places(batch: Batch) -> dict[int, list[int]]:
    """The positions of the rows of each sequence of a batch, in their order."""
    width = batch.input_ids.shape[1]
    places: dict[int, list[int]] = {}
    for row in batch.rows.tolist():
        sequence, position = divmod(row, width)
        places.setdefault(sequence, []).append(position)
    return places


def _part(batch: Batch, sequences: Sequence[int]) -> Batch:
    """The same batch with some of its sequences only, as far as a teacher reads it."""
    step_ids = batch.step_ids[list(sequences)]
    return replace(
        batch,
        input_ids=batch.input_ids[list(sequences)],
        attention_mask=batch.attention_mask[list(sequences)],
        step_ids=step_ids,
        loss_mask=batch.loss_mask[list(sequences)],
        log_probs=batch.log_probs[list(sequences)],
        rows=(step_ids.flatten() >= 0).nonzero().flatten() - 1,
    )


def _joined(parts: Sequence[TopScores | None], device: torch.device) -> TopScores:
    known = [part for part in parts if part is not None]
    return TopScores(
        log_probs=torch.cat([part.log_probs for part in known]).to(device),
        ids=torch.cat([part.ids for part in known]).to(device),
    )


def _packed(scores: TopScores) -> bytes:
    header = _HEADER.pack(*scores.ids.shape)
    ids, log_probs = scores.ids.to(torch.int32).contiguous(), scores.log_probs.float().contiguous()
    return header + ids.numpy().tobytes() + log_probs.numpy().tobytes()


def _unpacked(payload: bytes, checksum: bytes, num_rows: int) -> TopScores | None:
    """The scores of an entry, or None for one that is not what was written."""
    if not isinstance(payload, bytes) or len(payload) < _HEADER.size or checksum != _checksum(payload):
        return None
    shape = _HEADER.unpack_from(payload)
    size = shape[0] * shape[1]
    if shape[0] != num_rows or len(payload) != _HEADER.size + _BYTES_PER_ENTRY * size:
        return None
    body = bytearray(payload[_HEADER.size :])
    ids = torch.frombuffer(body, dtype=torch.int32, count=size).reshape(shape)
    log_probs = torch.frombuffer(body, dtype=torch.float32, offset=4 * size, count=size).reshape(shape)
    return TopScores(log_probs=log_probs.clone(), ids=ids.long())


def _checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
