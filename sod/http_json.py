"""JSON over HTTP with a deadline for every request and a bounded number of attempts."""

from __future__ import annotations

import threading
from typing import Any, Literal

import httpx2

from sod.errors import RolloutError, ServiceUnavailableError

_TRIED_AGAIN = (429, 500, 502, 503, 504)


class JsonServer:
    """One server; calls may be made from several threads."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_attempts: int = 1,
        retry_wait_s: float = 1.0,
        max_connections: int = 8,
    ) -> None:
        """Open nothing yet.

        Args:
            url: Address, as http://host:port.
            timeout_s: Longest wait for an answer, in seconds.
            max_attempts: How often a request is tried that fails on the way.
            retry_wait_s: Wait before the second attempt in seconds; every further one waits twice as long.
            max_connections: Requests in flight at the same time.
        """
        self.url = url.rstrip("/")
        self._max_attempts = max_attempts
        self._retry_wait_s = retry_wait_s
        self._closed = threading.Event()
        self._client = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            limits=httpx2.Limits(max_connections=max_connections),
        )

    def get(self, path: str) -> Any:
        """Read a path; see `post`."""
        return self._ask("GET", path, None, self._max_attempts)

    def post(self, path: str, body: Any, *, is_repeatable: bool = True) -> Any:
        """Send a request.

        Args:
            path: Behind the address.
            body: What to send, as JSON.
            is_repeatable: Whether it may be sent again after a failure on the way.

        Returns:
            The decoded answer; None for an empty one.

        Raises:
            RolloutError: The server refuses the request, or answers with something else than JSON.
            ServiceUnavailableError: It could not be reached, or did not answer in time, in any attempt.
        """
        return self._ask("POST", path, body, self._max_attempts if is_repeatable else 1)

    def close(self) -> None:
        """Close all connections; attempts that wait give up."""
        self._closed.set()
        self._client.close()

    def _ask(self, method: Literal["GET", "POST"], path: str, body: Any, attempts: int) -> Any:
        reason = ""
        for attempt in range(attempts):
            if attempt and self._closed.wait(self._retry_wait_s * 2 ** (attempt - 1)):
                break
            try:
                response = self._client.request(method, path, json=body)
            except httpx2.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
                continue
            if response.status_code in _TRIED_AGAIN:
                reason = f"status {response.status_code}: {response.text[:200]}"
                continue
            return self._decoded(method, path, response)
        raise ServiceUnavailableError(
            f"{method} {self.url}{path}: no answer in {attempts} attempts, at last {reason}. Look at the "
            "server; the run goes on from its latest checkpoint with --resume when it is back."
        )

    def _decoded(self, method: str, path: str, response: httpx2.Response) -> Any:
        where = f"{method} {self.url}{path}"
        if response.status_code >= 400:
            raise RolloutError(
                f"{where}: refused with status {response.status_code}: {response.text[:500]}. Look at how "
                "the server was started, see docs/engines.md."
            )
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise RolloutError(
                f"{where}: wanted JSON, got {response.text[:100]!r}. Is there a vLLM server at this address?"
            ) from None
