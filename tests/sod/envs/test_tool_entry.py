"""The "tools" environment as a file names it: its tools, its reward, and where Python runs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sod.envs.registry import build_environment
from sod.envs.tool_entry import ToolsSection
from sod.errors import ConfigError
from sod.parsing import parse_hermes
from sod.tools import ToolRunner
from sod.types import Task, ToolCall, ToolOutcome

TASK = Task(
    task_id="t",
    messages=({"role": "user", "content": "Double it."},),
    fields={"answer": json.dumps({"inputs": ["2", "3"], "outputs": ["4", "6"]})},
)


def python(code: str) -> ToolCall:
    return ToolCall(name="python", arguments={"code": code})


@pytest.mark.sandbox
@pytest.mark.parametrize(("state", "second"), [("fresh", ToolOutcome.TOOL_ERROR), ("kept", ToolOutcome.OK)])
def test_python_keeps_its_state_or_not_and_the_reward_runs_programs(state, second):
    built = build_environment(ToolsSection(python_state=state, reward="code", sandbox_workers=1))
    try:
        environment = built.factory(TASK)
        with ToolRunner(built.tools, num_threads=1) as runner:
            ((one, two),) = runner.run_batch([[python("x = 1"), python("x")]], tools=[environment.tools])
        assert (one.outcome, two.outcome) == (ToolOutcome.OK, second)
        answer = environment.step(parse_hermes("```python\nprint(int(input()) + 2)\n```"), ())
        assert (answer.is_done, answer.reward, answer.is_success) == (True, 0.5, False)
        environment.close()
    finally:
        built.close()


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer("pong")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        run = {"status": "Finished", "return_code": 0, "stdout": "far away", "stderr": ""}
        self.answer({"status": "Success", "run_result": run})

    def answer(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_):
        pass


def test_python_runs_on_a_server_where_the_settings_say_so():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        built = build_environment(ToolsSection(sandbox="fusion", sandbox_url=url, reward="exact"))
        with ToolRunner(built.tools) as runner:
            assert runner.run([python("1")])[0].text == "far away"
        built.close()
        server.shutdown()


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"\[environment\] sandbox_url = 'nowhere': .*wanted the address"):
        build_environment(ToolsSection(sandbox="fusion", sandbox_url="nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sandbox": "fusion"}, "sandbox_url is missing; give the address"),
        ({"sandbox_url": "http://x"}, 'belongs to sandbox = "fusion", but sandbox = .local.; remove one'),
        (
            {"sandbox": "fusion", "sandbox_url": "http://x", "python_state": "kept"},
            "a SandboxFusion server keeps nothing between calls",
        ),
        ({"reward": "maths"}, "reward = 'maths': wanted one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ToolsSection(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pythn", "'pythn' is unknown; wanted 'python'"),
        ("math:nothing", "'math:nothing' cannot be imported"),
    ],
)
def test_tools_that_do_not_exist_are_named(name, message):
    with pytest.raises(ConfigError, match=message):
        build_environment(ToolsSection(tools=(name,), reward="exact"))
