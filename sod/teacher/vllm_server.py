"""A teacher behind a vLLM server: it lists the most likely ids of every token, and the sampled one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from sod.config_teachers import VLLMTeacherSection
from sod.engines.vllm_server import prompt_log_probs, served_model
from sod.errors import ConfigError, RolloutError
from sod.http_json import JsonServer
from sod.packing import Batch
from sod.scoring import TopScores
from sod.teacher.base import Capability


class VLLMTeacher:
    """Asks a vLLM server to score what the student wrote; only ids and numbers travel."""

    def __init__(self, section: VLLMTeacherSection, *, vocab_size: int, max_tokens: int) -> None:
        """Find the server.

        Args:
            section: The settings.
            vocab_size: Ids that are tokens; a listed id beyond is left out.
            max_tokens: Longest sequence that will be scored.

        Raises:
            ConfigError: The server holds no sequence of that length and one token more.
            RolloutError: What answers is no vLLM server.
            ServiceUnavailableError: It cannot be reached.
        """
        self._section = section
        self._vocab_size = vocab_size
        self._server = JsonServer(
            section.url,
            timeout_s=section.timeout_s,
            max_attempts=section.max_attempts,
            retry_wait_s=section.retry_wait_s,
            max_connections=section.max_concurrency,
        )
        try:
            self._model, length = served_model(self._server)
            if length <= max_tokens:
                raise ConfigError(
                    f"[teacher] url = {section.url!r}: the server holds {length} tokens in a row; wanted "
                    f"more than the {max_tokens} of [rollout] max_trajectory_tokens. Start it with a larger "
                    "--max-model-len."
                )
        except BaseException:
            self._server.close()
            raise

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The sampled id always, others with `num_top` above 0."""
        if self._section.num_top == 0:
            return frozenset({Capability.SAMPLED})
        return frozenset({Capability.TOP_K, Capability.SAMPLED})

    @property
    def fingerprint(self) -> str:
        """Names the model; weights that change behind one name do not show."""
        section = self._section
        return f"vllm:{section.model}@{section.revision}:{self._model}:{section.num_top}"

    def top_scores(self, batch: Batch) -> TopScores:
        """Score the rows of a batch; see `sod.teacher.base.ListingTeacher.top_scores`.

        Raises:
            RolloutError: The server refuses, or a log-probability is not a number.
            ServiceUnavailableError: It cannot be reached any more.
        """
        width = batch.input_ids.shape[1]
        places = [divmod(row, width) for row in batch.rows.tolist()]
        last: dict[int, int] = {}
        for sequence, position in places:
            last[sequence] = max(last.get(sequence, 0), position)
        # Nothing behind the last response token is asked for.
        texts = {
            sequence: batch.input_ids[sequence, : position + 2].tolist()
            for sequence, position in last.items()
        }
        with ThreadPoolExecutor(max_workers=self._section.max_concurrency) as pool:
            answers = dict(zip(texts, pool.map(self._ask, texts.values()), strict=True))
        rows = [answers[sequence][position] for sequence, position in places]
        return self._tensors(batch, rows)

    def close(self) -> None:
        """Close the connections; the server goes on."""
        self._server.close()

    def _ask(self, ids: Sequence[int]) -> list[dict[int, float]]:
        return prompt_log_probs(self._server, self._model, ids, num_top=self._section.num_top)

    def _tensors(self, batch: Batch, rows: Sequence[Mapping[int, float]]) -> TopScores:
        size = self._section.num_top + 1
        ids = torch.full((len(rows), size), -1, dtype=torch.int64)
        log_probs = torch.full((len(rows), size), -torch.inf)
        for place, row in enumerate(rows):
            known = {token: value for token, value in row.items() if token < self._vocab_size}
            if any(math.isnan(value) or value > 0 for value in known.values()):
                raise RolloutError(
                    f"[teacher] url = {self._section.url!r}: row {place} of a microbatch got a log-prob that "
                    "is not a number or above 0; the teacher's weights or logits are not finite."
                )
            ids[place, : len(known)] = torch.tensor(list(known))
            log_probs[place, : len(known)] = torch.tensor(list(known.values()))
        device = batch.rows.device
        return TopScores(log_probs=log_probs.to(device), ids=ids.to(device))
