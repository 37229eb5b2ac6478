"""The isolated Python sandbox: untrusted code, a few milliseconds a call, nothing left behind."""

from sod.sandbox.local import LocalSandbox, SandboxResult, sandbox_problem

__all__ = ["LocalSandbox", "SandboxResult", "sandbox_problem"]
