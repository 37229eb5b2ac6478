"""A vLLM server over HTTP: token ids there, token ids and log-probabilities back."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sod.config_engines import VLLMServerSection
from sod.engines.base import Generation, Respond, SamplingParams, WeightSource
from sod.engines.turnwise import TurnBook, TurnRequest
from sod.engines.vllm_transfer import TrainerLink, open_link
from sod.errors import ConfigError, RolloutError
from sod.http_json import JsonServer


class VLLMServerEngine:
    """Samples with a vLLM server, which was started as docs/engines.md says.

    A server that cannot be reached is asked again; when it stays away, the run stops and can be resumed.

    Attributes:
        policy_version: Number of optimiser updates behind the weights; -1 before the first arrived.
    """

    policy_version: int

    def __init__(
        self, section: VLLMServerSection, *, vocab_size: int | None = None, max_batch: int = 64
    ) -> None:
        """Find the server and its model.

        Args:
            section: The settings.
            vocab_size: Ids that are tokens; None for all.
            max_batch: Requests in flight at the same time.

        Raises:
            ServiceUnavailableError: It cannot be reached.
            RolloutError: What answers is no vLLM server.
        """
        self.policy_version = -1
        self._section = section
        self._vocab_size = vocab_size
        self._max_batch = max_batch
        self._link: TrainerLink | None = None
        self._server = JsonServer(
            section.url,
            timeout_s=section.timeout_s,
            max_attempts=section.max_attempts,
            retry_wait_s=section.retry_wait_s,
            max_connections=max_batch,
        )
        try:
            self._model, self._num_positions = served_model(self._server)
        except BaseException:
            self._server.close()
            raise
        # A server outlives runs: its cache must never hold what other weights computed.
        self._run = secrets.token_hex(8)

    def update_weights(self, model_or_state: WeightSource, policy_version: int) -> None:
        """Send weights; see `sod.engines.base.RolloutEngine.update_weights`.

        Raises:
            RolloutError: The server does not take them.
            ServiceUnavailableError: It cannot be reached.
        """
        if not isinstance(model_or_state, PreTrainedModel):
            raise TypeError(
                f"VLLMServerEngine.update_weights: got {type(model_or_state).__name__}; wanted the "
                "transformers model, its weights are sent in the form of a checkpoint."
            )
        if self._section.weight_transfer == "nccl":
            self._send_by_nccl(model_or_state)
        else:
            self._send_by_folder(model_or_state, policy_version)
        self.policy_version = policy_version

    def score(self, ids: Sequence[int]) -> tuple[float, ...] | None:
        """Score a text; see `sod.engines.base.RolloutEngine.score`."""
        rows = prompt_log_probs(self._server, self._model, ids, num_top=0, salt=self._salt)
        return tuple(row[token] for row, token in zip(rows, ids[1:], strict=True))

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Sample all rows to their end; results travel through `respond`.

        Args:
            prompts: One token id sequence per row.
            respond: Answers every ended turn, from this thread; which turns end together depends on time.
            params: How to sample.
            seed: Makes the samples repeatable.

        Raises:
            ValueError: A prompt is empty or leaves no room for a token.
            RolloutError: No weights have arrived yet, an observation leaves no room for a token, or the
                server does not answer as asked.
            ServiceUnavailableError: It cannot be reached any more.
        """
        if self.policy_version < 0:
            raise RolloutError("VLLMServerEngine.rollout: it has no weights yet; call update_weights first.")
        book = TurnBook(
            prompts,
            respond,
            params,
            seed=seed,
            num_positions=self._num_positions,
            engine="VLLMServerEngine",
            vocab_size=self._vocab_size,
        )
        with ThreadPoolExecutor(max_workers=self._max_batch) as pool:
            running: dict[Future[Generation], TurnRequest] = {}

            def ask(requests: Sequence[TurnRequest]) -> None:
                for request in requests:
                    running[pool.submit(self._sample, book, request, params)] = request

            ask(book.first_requests())
            try:
                while running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    ended = [(running.pop(future).row, future.result()) for future in done]
                    ask(book.answer(ended))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Close the connections; the server goes on."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._server.close()

    @property
    def _salt(self) -> str:
        return f"{self._run}-{self.policy_version}"

    def _sample(self, book: TurnBook, request: TurnRequest, params: SamplingParams) -> Generation:
        body = {
            "model": self._model,
            "prompt": list(request.ids),
            "max_tokens": request.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            # The server takes what is not said here from the model's own generation settings.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(params.stop_ids),
            "ignore_eos": True,
            "seed": request.seed,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "cache_salt": self._salt,
        }
        answer = self._server.post("/v1/completions", body)
        try:
            (choice,) = answer["choices"]
            ids, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        except (KeyError, TypeError, ValueError) as error:
            raise _not_as_asked("token ids and log-probs", error) from None
        return book.generation(request, ids, log_probs)

    def _send_by_folder(self, model: PreTrainedModel, policy_version: int) -> None:
        if self._section.folder is None:
            raise ConfigError('[engine] folder is missing; weight_transfer = "folder" needs it')
        folder = self._section.folder / f"policy-{self._run}-{policy_version}"
        try:
            model.save_pretrained(folder)
            body = {"method": "sod_reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._server.post("/collective_rpc", body)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _send_by_nccl(self, model: nn.Module) -> None:
        if self._link is None:
            section = self._section
            self._link = open_link(
                _ServerClient(self._server),
                model,
                backend="nccl",
                master_address=section.master_address or "",
                master_port=section.master_port or 0,
                num_workers=section.num_workers or 1,
            )
        self._link.send()


class _ServerClient:
    """The calls of vLLM's weight transfer, made over HTTP; none is repeated, for each changes a state."""

    def __init__(self, server: JsonServer) -> None:
        self._server = server

    def init_weight_transfer_engine(self, init_info: Any) -> None:
        self._server.post("/init_weight_transfer_engine", {"init_info": init_info}, is_repeatable=False)

    def start_weight_update(self) -> None:
        self._server.post("/start_weight_update", {}, is_repeatable=False)

    def update_weights(self, update_info: Any) -> None:
        self._server.post("/update_weights", {"update_info": update_info}, is_repeatable=False)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._server.post("/finish_weight_update", {"weight_version": weight_version}, is_repeatable=False)


def served_model(server: JsonServer) -> tuple[str, int]:
    """Ask a vLLM server what it serves.

    Args:
        server: The server.

    Returns:
        Name of its model, and the tokens that it holds in one row.

    Raises:
        RolloutError: What answers is no vLLM server.
        ServiceUnavailableError: It cannot be reached.
    """
    answer = server.get("/v1/models")
    try:
        entry = answer["data"][0]
        return str(entry["id"]), int(entry["max_model_len"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _not_as_asked("its model", error) from None


def prompt_log_probs(
    server: JsonServer, model: str, ids: Sequence[int], *, num_top: int, salt: str | None = None
) -> list[dict[int, float]]:
    """Have a vLLM server score a text.

    Args:
        server: The server.
        model: Name that it serves the model under.
        ids: Token ids, at least two.
        num_top: Most likely ids that are listed at each position beside the actual one.
        salt: Keeps the server's cache of this text apart.

    Returns:
        For every id but the first: log-probability in nats by id, temperature 1.

    Raises:
        RolloutError: The server refuses, or does not answer as asked.
        ServiceUnavailableError: It cannot be reached.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": num_top,
    }
    if salt is not None:
        body["cache_salt"] = salt
    answer = server.post("/v1/completions", body)
    try:
        (choice,) = answer["choices"]
        rows = [
            {int(token): float(entry["logprob"]) for token, entry in row.items()}
            for row in choice["prompt_logprobs"][1:]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_as_asked("log-probs of the prompt", error) from None
    if len(rows) != len(ids) - 1 or not all(token in row for row, token in zip(rows, ids[1:], strict=True)):
        raise _not_as_asked("log-probs of the prompt", ValueError("positions or ids are missing"))
    return rows


def _not_as_asked(what: str, error: Exception) -> RolloutError:
    return RolloutError(
        f"vLLM server: asked for {what}, but the answer is of another form ({type(error).__name__}: "
        f"{error}). Wanted vLLM 0.32 or a later one of the same routes."
    )
