"""Examines the servers that a run asks."""

from __future__ import annotations

from sod.config_engines import VLLMServerSection
from sod.config_teachers import VLLMTeacherSection
from sod.doctor.findings import Findings, Level
from sod.engines.vllm_server import served_model
from sod.http_json import JsonServer

_TIMEOUT_S = 10.0


def examine_server(
    findings: Findings, section: VLLMServerSection | VLLMTeacherSection, num_tokens: int
) -> None:
    """Ask a vLLM server what it serves and how long a text may be.

    Args:
        findings: Written to.
        section: [engine] or [teacher].
        num_tokens: Longest text that the run will send.
    """
    role = section.section
    server = JsonServer(section.url, timeout_s=min(section.timeout_s, _TIMEOUT_S))
    try:
        with findings.examining(role, "server"):
            model, length = served_model(server)
            text = f"{section.url} serves {model!r}, {length:,} tokens in a row"
            if length < num_tokens:
                text += f"; the run sends up to {num_tokens:,}, start it with a larger --max-model-len"
            findings.add(role, "server", text, Level.FATAL if length < num_tokens else Level.OK)
    finally:
        server.close()
