"""The client of a vLLM server against a small one: what it asks, what it accepts, and when it gives up."""

from __future__ import annotations

import threading
import time

import pytest

from sod.config_engines import VLLMServerSection
from sod.engines.base import SamplingParams
from sod.engines.vllm_server import VLLMServerEngine
from sod.errors import ConfigError, RolloutError, ServiceUnavailableError
from sod.http_json import JsonServer
from tests.sod.fake_server import FakeServer

MODELS = {"data": [{"id": "tiny", "max_model_len": 64}]}
PARAMS = SamplingParams(max_turn_tokens=4, stop_ids=(9,), temperature=0.7, top_p=0.9)


def completion(ids, log_probs=None):
    return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": log_probs or [-0.5] * len(ids)}}]}


def engine_at(url, tmp_path, **changes):
    options = {"folder": tmp_path, "timeout_s": 5.0, "max_attempts": 2, "retry_wait_s": 0.01, **changes}
    return VLLMServerEngine(VLLMServerSection(url=url, **options), vocab_size=20, max_batch=2)


def serving(answers):
    def answer(path, body):
        if path == "/v1/models":
            return 200, MODELS
        value = answers(path, body)
        return value if isinstance(value, tuple) else (200, value)

    return FakeServer(answer)


def test_what_is_asked_of_the_server(tmp_path, tiny_model):
    with serving(
        lambda path, body: completion([5, 9]) if body.get("prompt") else {"results": [None]}
    ) as server:
        engine = engine_at(server.url, tmp_path)
        with pytest.raises(RolloutError, match="no weights yet"):
            engine.rollout([(1, 2)], lambda _: [None], PARAMS, seed=3)
        folders = []
        tiny_model.save_pretrained = lambda folder: (folder.mkdir(), folders.append(folder))
        engine.update_weights(tiny_model, 4)
        turns = []
        engine.rollout(
            [(1, 2), (3,)], lambda ended: turns.extend(ended) or [None] * len(ended), PARAMS, seed=3
        )
        engine.close()
    path, body = server.requests[1]
    assert path == "/collective_rpc"
    assert body == {"method": "sod_reload_weights", "kwargs": {"weights_path": str(folders[0])}}
    assert not folders[0].exists()
    asked = {tuple(body["prompt"]): body for path, body in server.requests[2:]}
    assert set(asked) == {(1, 2), (3,)}
    body = asked[1, 2]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("tiny", 0.7, 0.9, 4)
    # What a model's own generation settings would otherwise change behind our back.
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert (body["stop_token_ids"], body["ignore_eos"], body["return_token_ids"]) == ([9], True, True)
    assert body["seed"] != asked[(3,)]["seed"]
    assert body["cache_salt"].endswith("-4")
    assert sorted(row for row, _ in turns) == [0, 1]
    assert turns[0][1].sampled_ids == (5, 9)
    assert turns[0][1].is_truncated


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choices": []}, r"asked for token ids and log-probs, but the answer is of another form"),
        ({"detail": "x"}, r"asked for token ids and log-probs"),
        ((400, {"error": "no such model"}), r"refused with status 400: .*no such model"),
        ((200, b"<html>"), r"wanted JSON, got '<html>'"),
        (completion([5, 6]), r"VLLMServerEngine.rollout: row 0, turn 0: 2 of 4 tokens"),
    ],
)
def test_answers_of_another_form_stop_the_rollout(tmp_path, answer, message):
    with serving(lambda *_: answer) as server:
        engine = engine_at(server.url, tmp_path)
        engine.policy_version = 0
        with pytest.raises(RolloutError, match=message):
            engine.rollout([(1, 2)], lambda _: [None], PARAMS, seed=0)
        engine.close()


def test_scores_need_every_position(tmp_path):
    rows = [None, {"2": {"logprob": -0.5}}, {"3": {"logprob": -0.25}, "7": {"logprob": -0.1}}]
    answers = [rows, rows[:2], [None, {"2": {"logprob": -0.5}}, {"7": {"logprob": -0.1}}]]
    with serving(lambda *_: {"choices": [{"prompt_logprobs": answers.pop(0)}]}) as server:
        engine = engine_at(server.url, tmp_path)
        assert engine.score((1, 2, 3)) == (-0.5, -0.25)
        for _ in range(2):
            with pytest.raises(RolloutError, match="positions or ids are missing"):
                engine.score((1, 2, 3))
        engine.close()


def test_a_busy_server_is_asked_again_and_a_dead_one_stops_the_run(tmp_path):
    answers = [(503, {}), completion([9])]
    with serving(lambda *_: answers.pop(0)) as server:
        engine = engine_at(server.url, tmp_path)
        engine.policy_version = 0
        turns = []
        engine.rollout([(1, 2)], lambda ended: turns.extend(ended) or [None], PARAMS, seed=0)
        assert turns[0][1].sampled_ids == (9,)
        assert len(server.requests) == 3
    with pytest.raises(ServiceUnavailableError, match=r"no answer in 2 attempts, at last .*--resume"):
        engine.rollout([(1, 2)], lambda _: [None], PARAMS, seed=0)
    with pytest.raises(ServiceUnavailableError, match=r"GET http.*/v1/models: no answer in 2 attempts"):
        engine_at(server.url, tmp_path)
    engine.close()


def test_a_server_that_hangs_meets_its_deadline():
    hanging = threading.Event()
    with FakeServer(lambda *_: (hanging.wait(5), (200, {}))[1]) as fake:
        server = JsonServer(fake.url, timeout_s=0.1, max_attempts=2, retry_wait_s=0.0)
        with pytest.raises(ServiceUnavailableError, match="ReadTimeout"):
            server.post("/x", {})
        assert len(fake.requests) == 2
        with pytest.raises(ServiceUnavailableError, match="in 1 attempts"):
            server.post("/x", {}, is_repeatable=False)
        hanging.set()
        server.close()


def test_closing_ends_the_waiting_between_attempts():
    server = JsonServer("http://127.0.0.1:9", timeout_s=1.0, max_attempts=2, retry_wait_s=60.0)
    threading.Timer(0.2, server.close).start()
    started = time.monotonic()
    with pytest.raises(ServiceUnavailableError):
        server.get("/x")
    assert time.monotonic() - started < 30


def test_an_empty_answer_is_none_and_no_vllm_is_said(tmp_path):
    with FakeServer(lambda path, _: (200, b"" if path == "/empty" else {"data": []})) as fake:
        server = JsonServer(fake.url, timeout_s=5.0)
        assert server.post("/empty", {}) is None
        server.close()
        with pytest.raises(RolloutError, match="asked for its model, but the answer is of another form"):
            engine_at(fake.url, tmp_path)


def test_settings_of_the_other_transfer_are_refused(tmp_path):
    url = "http://127.0.0.1:8000"
    with pytest.raises(
        ConfigError, match=r'\[engine\] folder is missing; weight_transfer = "folder" needs it'
    ):
        VLLMServerSection(url=url)
    with pytest.raises(ConfigError, match=r'\[engine\] master_port is missing; weight_transfer = "nccl"'):
        VLLMServerSection(url=url, weight_transfer="nccl", master_address="10.0.0.1", num_workers=1)
    with pytest.raises(ConfigError, match=r'\[engine\] folder belongs to weight_transfer = "folder"'):
        VLLMServerSection(url=url, weight_transfer="nccl", folder=tmp_path)
    with pytest.raises(ConfigError, match=r'\[engine\] num_workers belongs to weight_transfer = "nccl"'):
        VLLMServerSection(url=url, folder=tmp_path, num_workers=2)
    for wrong in ("127.0.0.1:8000", "ftp://host", "http://", "http://host/v1"):
        with pytest.raises(ConfigError, match=r"\[engine\] url = .*: wanted an address such as"):
            VLLMServerSection(url=wrong, folder=tmp_path)
