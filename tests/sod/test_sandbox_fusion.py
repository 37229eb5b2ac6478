"""The SandboxFusion client against a local server that answers in the shapes of the real one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sod.errors import SandboxUnavailableError
from sod.sandbox import SandboxFusionClient, fusion
from sod.types import ToolOutcome


def run_code(request: dict) -> dict:
    """What the real server does without isolation: a process, its output, and the words for its end."""
    reply = {
        "status": "Success",
        "message": "",
        "compile_result": None,
        "executor_pod_name": None,
        "files": {},
    }
    result = {"status": "Finished", "execution_time": 0.01, "return_code": 0, "stdout": "", "stderr": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-c", request["code"]],
            input=request.get("stdin") or "",
            capture_output=True,
            text=True,
            timeout=request["run_timeout"],
        )
    except subprocess.TimeoutExpired as late:
        result |= {"status": "TimeLimitExceeded", "return_code": None}
        result["stdout"] = (late.stdout or b"").decode()
        return {**reply, "status": "Failed", "run_result": result}
    result |= {"return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    return {**reply, "status": "Failed" if done.returncode else "Success", "run_result": result}


class FakeServer(ThreadingHTTPServer):
    """Answers /v1/ping and /run_code; `faults` are given instead, one per request, while there are any."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.faults = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, b'"pong"') if self.path == "/v1/ping" else self.answer(404, b"{}")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, request))
        if not self.server.faults:
            return self.answer(200, json.dumps(run_code(request)).encode())
        fault = self.server.faults.pop(0)
        if fault == "hang up":
            return self.connection.close()
        status, body = fault
        return self.answer(status, body if isinstance(body, bytes) else json.dumps(body).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fusion, "_PAUSE_S", 0.001)
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_call_has_the_outcomes_and_words_of_the_local_sandbox(server):
    client = SandboxFusionClient(server.url + "/", memory_bytes=256 << 20, max_output_bytes=256)
    result = client.run("import sys\nprint(sys.stdin.read())\nx = 20\nx + 1", stdin="in", timeout_s=20.0)
    assert (result.outcome, result.stdout, result.stderr) == (ToolOutcome.OK, "in\n21\n", "")
    assert (result.exit_code, result.seconds, result.truncated) == (0, 0.01, False)
    ((path, request),) = server.requests
    assert path == "/run_code"
    assert (request["language"], request["run_timeout"], request["memory_limit_MB"]) == ("python", 20.0, 256)

    failed = client.run("def f():\n    return 1 / 0\nf()")
    assert (failed.outcome, failed.exit_code) == (ToolOutcome.TOOL_ERROR, 1)
    assert failed.stderr.startswith('Traceback (most recent call last):\n  File "<code>", line 3')
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")
    killed = client.run("import os; os.abort()")
    assert (killed.outcome, killed.exit_code) == (ToolOutcome.KILLED, -6)
    late = client.run("import time\nprint('before', flush=True)\ntime.sleep(60)", timeout_s=1.0)
    assert (late.outcome, late.exit_code, late.stdout) == (ToolOutcome.TIMEOUT, None, "before\n")
    long = client.run("print('a' * 500 + 'z' * 500)")
    assert long.truncated
    assert "bytes dropped" in long.stdout
    assert client.run("#" * ((8 << 20) + 1)).outcome is ToolOutcome.TOOL_ERROR
    assert len(server.requests) == 5
    client.close()


SANDBOX_ERROR = {"status": "SandboxError", "message": "no pod", "run_result": None}
RUN_ERROR = {"status": "Failed", "message": "spawn", "run_result": {"status": "Error"}}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((503, b"busy"), "HTTP status 503: busy"),
        ((200, SANDBOX_ERROR), "SandboxError: no pod"),
        ((200, RUN_ERROR), "the run ended with Error: spawn"),
        ((200, {"status": "Success"}), "the reply has another form than /run_code's: {"),
        ((200, b"[1]"), "the reply has another form than /run_code's: [1]"),
        ((200, b"<html>"), "the reply is not JSON"),
        ("hang up", "RemoteDisconnected: "),
    ],
)
def test_a_server_that_fails_is_tried_again_and_then_unavailable(server, fault, reason):
    client = SandboxFusionClient(server.url)
    server.faults += [fault, fault]
    assert client.run("1").stdout == "1\n"
    server.faults += [fault] * 3
    result = client.run("1")
    assert (result.outcome, result.stdout, result.exit_code) == (ToolOutcome.UNAVAILABLE, "", None)
    assert result.stderr.startswith(f"{server.url}: {reason}"), result.stderr
    assert result.stderr.endswith("(3 attempts)")


def test_a_request_that_the_server_refuses_is_not_repeated(server):
    client = SandboxFusionClient(server.url)
    server.faults.append((422, b"run_timeout: too long"))
    result = client.run("1")
    assert (result.outcome, len(server.requests)) == (ToolOutcome.UNAVAILABLE, 1)
    assert result.stderr == f"{server.url}: HTTP status 422: run_timeout: too long"


def test_replies_without_end_and_beyond_all_size_are_given_up(server, monkeypatch):
    client = SandboxFusionClient(server.url)
    monkeypatch.setattr(fusion, "_MAX_REPLY_BYTES", 10)
    assert "the reply has more than 10 bytes" in client.run("1").stderr
    with pytest.raises(fusion._TransientError, match="the reply did not end in time"):
        fusion._read(io.BytesIO(b"slow"), deadline=0.0)


def test_a_server_that_is_none_is_told_at_once(server):
    with pytest.raises(SandboxUnavailableError, match=r"does not answer /v1/ping: HTTP status 404"):
        SandboxFusionClient(server.url + "/elsewhere")
    server.shutdown()
    server.server_close()
    with pytest.raises(SandboxUnavailableError, match=r"does not answer /v1/ping: .*Start the server, or"):
        SandboxFusionClient(server.url)


def test_another_server_is_told(server, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(200, b'"hello"'))
    with pytest.raises(SandboxUnavailableError, match=r"says 'hello', wanted 'pong'; this is no"):
        SandboxFusionClient(server.url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8080"}, r"url is 'localhost:8080', wanted the address of a server"),
        ({"url": "http://x", "memory_bytes": 5}, "memory_bytes is 5, wanted None or 1 MiB or more"),
        ({"url": "http://x", "max_output_bytes": 5}, "max_output_bytes is 5, wanted at least 256"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"SandboxFusionClient: {message}"):
        SandboxFusionClient(**arguments)


def test_inputs_of_a_wrong_type_are_refused(server):
    with pytest.raises(TypeError, match=r"SandboxFusionClient\.run: code is bytes, wanted str"):
        SandboxFusionClient(server.url).run(b"1")
