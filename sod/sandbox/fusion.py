"""A SandboxFusion server as sandbox: the same call, on another machine."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from sod.errors import SandboxUnavailableError
from sod.sandbox.calls import SandboxResult, encoded_inputs, failed, outcome_of, too_long
from sod.sandbox.capture import BoundedText
from sod.types import ToolOutcome

# Beyond the deadline of the code: the server's own start, its queue and the way.
_GRACE_S = 30.0
_PING_TIMEOUT_S = 10.0
_PAUSE_S = 0.2
_NUM_ATTEMPTS = 3
_MAX_REPLY_BYTES = 64 << 20
# What is worth a second try: too many requests, or a server that is down or restarts.
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_RUNNER = Path(__file__).parent / "inside" / "user_code.py"


class SandboxFusionClient:
    """Runs untrusted Python on a SandboxFusion server, with the words and outcomes of `LocalSandbox`.

    The code runs under the same few lines as in the local sandbox, so that the value of a last expression and
    the traceback read the same. How well it is isolated, and how much disk it has, is the server's affair. A
    server that is down, overloaded or answers nonsense is tried three times; then the outcome is UNAVAILABLE,
    so that the trajectory is dropped and attempted anew.

    Args:
        url: Address of the server, for example `http://sandbox:8080`.
        memory_bytes: Memory of one call in bytes; None leaves it to the server.
        max_output_bytes: Most bytes kept of stdout and of stderr, each; the middle is dropped.

    Raises:
        SandboxUnavailableError: The server does not answer `/v1/ping`.
        ValueError: The url is none, or a number is out of range.
    """

    def __init__(
        self, url: str, *, memory_bytes: int | None = None, max_output_bytes: int = 64 << 10
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"SandboxFusionClient: url is {url!r}, wanted the address of a server such as "
                "'http://localhost:8080'."
            )
        if memory_bytes is not None and memory_bytes < 1 << 20:
            raise ValueError(
                f"SandboxFusionClient: memory_bytes is {memory_bytes}, wanted None or 1 MiB or more."
            )
        if max_output_bytes < 256:
            raise ValueError(
                f"SandboxFusionClient: max_output_bytes is {max_output_bytes}, wanted at least 256."
            )
        self.url = url.rstrip("/")
        self._host = parts.netloc.rpartition("@")[2]
        self._is_secure = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self._memory_mib = -1 if memory_bytes is None else memory_bytes >> 20
        self._max_output_bytes = max_output_bytes
        self._runner = _RUNNER.read_text(encoding="utf-8")
        self._ping()

    def run(self, code: str, stdin: str = "", timeout_s: float = 10.0) -> SandboxResult:
        """Run one piece of Python on the server and wait for its end.

        Args:
            code: Python source.
            stdin: What it can read from standard input.
            timeout_s: Wall-clock deadline in seconds, kept by the server.

        Returns:
            What it did.

        Raises:
            TypeError: `code` or `stdin` is not text.
            ValueError: `timeout_s` is out of range.
        """
        refused = too_long(*encoded_inputs("SandboxFusionClient.run", code, stdin, timeout_s))
        if refused is not None:
            return refused
        request = {
            "code": f"{self._runner}\n\nrun_and_exit({code!r})\n",
            "language": "python",
            "stdin": stdin,
            "run_timeout": timeout_s,
            "memory_limit_MB": self._memory_mib,
        }
        reason = ""
        for attempt in range(_NUM_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S * 2**attempt)
            try:
                reply = self._request("POST", "/run_code", request, timeout_s + _GRACE_S)
                return self._result(reply, timeout_s)
            except _TransientError as error:
                reason = str(error)
            except _ServerError as error:
                return failed(ToolOutcome.UNAVAILABLE, f"{self.url}: {error}")
        return failed(ToolOutcome.UNAVAILABLE, f"{self.url}: {reason} ({_NUM_ATTEMPTS} attempts)")

    def close(self) -> None:
        """Do nothing: every call has a connection of its own."""

    def _ping(self) -> None:
        """Prove that there is such a server."""
        try:
            answer = self._request("GET", "/v1/ping", None, _PING_TIMEOUT_S)
        except _ServerError as error:
            raise SandboxUnavailableError(
                f"SandboxFusionClient: {self.url} does not answer /v1/ping: {error}. Start the server, or "
                "correct the address."
            ) from error
        if answer != "pong":
            raise SandboxUnavailableError(
                f"SandboxFusionClient: {self.url}/v1/ping says {answer!r}, wanted 'pong'; this is no "
                "SandboxFusion server."
            )

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        """Send one request; return what the JSON of the reply holds."""
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = kind(self._host, timeout=timeout_s)
        deadline = time.monotonic() + timeout_s
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = _read(response, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            text = content[:200].decode(errors="replace")
            kind_of_error = _TransientError if response.status in _TRANSIENT else _ServerError
            raise kind_of_error(f"HTTP status {response.status}: {text}")
        try:
            return json.loads(content)
        except ValueError as error:
            raise _TransientError(f"the reply is not JSON: {error}") from error

    def _result(self, reply: Any, timeout_s: float) -> SandboxResult:
        """Say what a reply means."""
        try:
            if reply["status"] not in ("Success", "Failed"):
                raise _TransientError(f"{reply['status']}: {reply.get('message', '')}")
            run = reply["run_result"]
            is_timeout = run["status"] == "TimeLimitExceeded"
            if run["status"] != "Finished" and not is_timeout:
                raise _TransientError(f"the run ended with {run['status']}: {reply.get('message', '')}")
            exit_code = None if is_timeout else int(run["return_code"])
            kept = [self._kept(run[name]) for name in ("stdout", "stderr")]
            seconds = float(run.get("execution_time") or (timeout_s if is_timeout else 0.0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            shown = json.dumps(reply)[:200]
            raise _TransientError(f"the reply has another form than /run_code's: {shown}") from error
        return SandboxResult(
            outcome=outcome_of(exit_code or 0, is_timeout=is_timeout),
            stdout=kept[0].text(),
            stderr=kept[1].text(),
            exit_code=exit_code,
            seconds=seconds,
            truncated=any(text.is_truncated for text in kept),
        )

    def _kept(self, text: str | None) -> BoundedText:
        """Bound one output; the server gives none where there was none."""
        kept = BoundedText(self._max_output_bytes)
        kept.add((text or "").encode(errors="replace"))
        return kept


class _ServerError(Exception):
    """The server refuses the request; another try would not help."""


class _TransientError(_ServerError):
    """The server is down or busy; another try may help."""


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read a reply to its end, within the deadline and a size."""
    content = bytearray()
    while part := response.read1(1 << 16):
        content += part
        if time.monotonic() > deadline:
            _give_up("the reply did not end in time")
        if len(content) > _MAX_REPLY_BYTES:
            _give_up(f"the reply has more than {_MAX_REPLY_BYTES} bytes")
    return bytes(content)


def _give_up(why: str) -> NoReturn:
    raise _TransientError(why)
