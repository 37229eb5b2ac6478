"""A made run, so that the table, the plots and the comparison are judged without measuring."""

from dataclasses import fields, replace

from benchmarks.limits import Bandwidth
from benchmarks.record import Document, Row

ORIGIN = {
    "device": "Test CPU (2 cores)",
    "kind": "cpu",
    "threads": 2,
    "git_sha": "0123456789abcdef",
    "git_is_clean": True,
    "versions": {"torch": "2.13.0"},
    "system": "test",
    "time": "2026-01-02T03:04:05Z",
}

OURS = Row(
    op="step_kl",
    sweeps="forward+backward",
    pair="small",
    contestant="step_kl native",
    kind="ours",
    rows=512,
    vocab=4096,
    student_width=256,
    teacher_width=512,
    dtype="float32",
    status="ok",
    loss_error=1e-7,
    gradient_error=2e-7,
    median_s=0.010,
    p20_s=0.009,
    p80_s=0.012,
    rounds=5,
    limit_s=0.004,
    bytes_per_s=4.2e9,
    flops_per_s=3.6e9,
    intensity=0.85,
    peak_extra_bytes=8 * 2**20,
)
EAGER = replace(
    OURS,
    contestant="torch eager",
    kind="torch",
    median_s=0.025,
    flops_per_s=1.4e9,
    peak_extra_bytes=64 * 2**20,
)
QUICKER = replace(OURS, contestant="torch.compile", kind="torch", median_s=0.008)
# The columns after `reason` are the measured ones.
MEASURED = [field.name for field in fields(Row)]
NOT_TIMED = dict.fromkeys(MEASURED[MEASURED.index("reason") + 1 :])
ABSENT = replace(
    OURS, contestant="Liger LigerJSD", kind="peer", **NOT_TIMED, status="skipped", reason="It needs a GPU."
)
BAD = replace(
    ABSENT, contestant="fla FusedKLDivLoss", status="wrong", reason="Off.", loss_error=0.5, gradient_error=3.0
)


def document(*rows, **origin):
    return Document(
        origin={**ORIGIN, **origin},
        bandwidth=Bandwidth(read=2.0e10, copy=1.5e10),
        matmul_flops_per_s=1e11,
        rows=list(rows),
    )
