"""The isolated Python sandbox: untrusted code, a few milliseconds a call, nothing left behind."""

from sod.sandbox.calls import Sandbox, SandboxResult
from sod.sandbox.fusion import SandboxFusionClient
from sod.sandbox.local import LocalSandbox, sandbox_problem

__all__ = ["LocalSandbox", "Sandbox", "SandboxFusionClient", "SandboxResult", "sandbox_problem"]
