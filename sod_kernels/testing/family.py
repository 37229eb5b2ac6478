"""Every function of the family on one small awkward batch, behind one call.

Tests on any device and the memory and race checkers take their inputs from here, so that all of them run the
same thing. Each batch has an odd vocabulary, rows that lie apart in memory, columns at -inf, rows in no step,
and steps that go on past the end of a chunk. The truth is the reference in float64 on the CPU, which tests of
its own hold to the textbook formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import sod_kernels
from sod_kernels.testing.checks import require
from sod_kernels.units import Units, VocabMap
from sod_kernels.weighting import SodWeighting

SINGLE_SWEEP = "step_kl_single_sweep"
FAMILY = (
    "step_kl",
    SINGLE_SWEEP,
    "topk_step_kl",
    "token_log_probs",
    "unit_kl",
    "linear_step_kl",
    "linear_topk_step_kl",
)
"""Names of the functions; a single sweep of `step_kl` counts as one of its own."""

FAMILY_TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-5, 1e-4),
    torch.bfloat16: (2e-5, 4e-3),
    torch.float16: (2e-5, 4e-3),
}
"""Largest relative error of the loss, and norm of a gradient's error over its norm, by dtype of the inputs.
Values are computed in float32 whatever the inputs are; a gradient has their dtype and is rounded to it."""

_TOP_K = 5
_NUM_STEPS = 4
_STUDENT_WIDTH, _TEACHER_WIDTH = 24, 40
# Rows of a chunk of the functions from hidden states: steps of the batch are cut by its borders.
_CHUNK_ROWS = 4
_GAP_COLUMNS = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class FamilyCase:
    """One function with everything that it is given.

    Attributes:
        op: One of `FAMILY`.
        arguments: Its arguments by name, but for `backend`.
        leaves: Names of the arguments that get a gradient.
    """

    op: str
    arguments: Mapping[str, Any]
    leaves: tuple[str, ...]

    @property
    def leaf_tensors(self) -> tuple[Tensor, ...]:
        """What gets a gradient."""
        return tuple(self.arguments[name] for name in self.leaves)

    def loss(self, backend: str, **changed: Any) -> Tensor:
        """Call the function.

        Args:
            backend: Name of a backend.
            changed: Arguments that take the place of the case's.

        Returns:
            A scalar that every output with a gradient has a part in.

        Raises:
            BackendUnavailableError: If the backend cannot run on the case.
        """
        function: Callable[..., Any] = getattr(sod_kernels, "step_kl" if self.op == SINGLE_SWEEP else self.op)
        output = function(**{**self.arguments, **changed}, backend=backend)
        if self.op == "token_log_probs":
            result: Tensor = output.log_probs.sum() - 0.1 * output.entropy.sum()
        elif self.op in ("step_kl", "topk_step_kl"):
            result = output.loss - 0.1 * output.student_entropy.sum()
        else:
            result = output.loss
        return result

    def loss_and_gradients(self, backend: str) -> tuple[Tensor, ...]:
        """Run forward and backward.

        Args:
            backend: Name of a backend.

        Returns:
            The detached loss, and a gradient per leaf.

        Raises:
            BackendUnavailableError: If the backend cannot run on the case.
        """
        loss = self.loss(backend)
        return (loss.detach(), *torch.autograd.grad(loss, self.leaf_tensors))

    def in_float64(self) -> FamilyCase:
        """Copy the case to the CPU, its numbers as they are, in float64."""

        def copied(name: str, value: Any) -> Any:
            if isinstance(value, Units | VocabMap):
                return value.to("cpu")
            if not isinstance(value, Tensor):
                return value
            value = value.detach().cpu()
            wide = value.double() if value.is_floating_point() else value
            return wide.requires_grad_(name in self.leaves)

        return replace(self, arguments={name: copied(name, value) for name, value in self.arguments.items()})


def make_family_case(
    op: str,
    *,
    dtype: torch.dtype,
    device: str,
    num_rows: int = 11,
    vocab_size: int = 1031,
    seed: int = 0,
) -> FamilyCase:
    """Draw the batch of one function.

    Args:
        op: One of `FAMILY`.
        dtype: Of logits, hidden states and heads.
        device: "cpu" or "cuda"; the numbers are drawn on the CPU and are the same on both.
        num_rows: Tokens N, at least 8.
        vocab_size: Columns V, at least 64.
        seed: Of the numbers.

    Returns:
        The case.

    Raises:
        ValueError: If the op is unknown or a size is too small.
    """
    if op not in FAMILY:
        raise ValueError(f"make_family_case: op={op!r}; wanted one of {', '.join(FAMILY)}.")
    if num_rows < 8 or vocab_size < 64:
        raise ValueError(
            f"make_family_case: num_rows={num_rows}, vocab_size={vocab_size}; wanted at least 8 and 64."
        )
    draw = _Draw(num_rows, vocab_size, dtype, device, torch.Generator().manual_seed(seed))
    makers = {
        "unit_kl": _unit_arguments,
        "token_log_probs": _log_prob_arguments,
        SINGLE_SWEEP: _single_sweep_arguments,
    }
    make = makers.get(op, _hidden_arguments if op.startswith("linear") else _logits_arguments)
    arguments, leaves = make(draw, op.endswith("topk_step_kl"))
    return FamilyCase(op=op, arguments=arguments, leaves=leaves)


def family_errors(case: FamilyCase, backend: str) -> tuple[float, float]:
    """Hold one backend to the truth.

    Args:
        case: From `make_family_case`.
        backend: Name of a backend.

    Returns:
        Relative error of the loss, and the largest norm of a gradient's error over its norm.

    Raises:
        BackendUnavailableError: If the backend cannot run on the case.
    """
    found = [each.cpu().double() for each in case.loss_and_gradients(backend)]
    exact = case.in_float64().loss_and_gradients("reference")
    errors = [float((ours - true).norm() / true.norm()) for ours, true in zip(found, exact, strict=True)]
    return errors[0], max(errors[1:])


def check_family_case(case: FamilyCase, backend: str) -> None:
    """Check accuracy and that a second call gives the same bits.

    Args:
        case: From `make_family_case`.
        backend: Name of a backend.

    Raises:
        AssertionError: If an error is beyond `FAMILY_TOLERANCES`, or the calls differ.
        BackendUnavailableError: If the backend cannot run on the case.
    """
    first, second = (case.loss_and_gradients(backend) for _ in range(2))
    for ours, again in zip(first, second, strict=True):
        require(torch.equal(ours, again), f"{case.op} {backend}: two calls differ.")
    dtype = case.leaf_tensors[0].dtype
    for name, error, allowed in zip(
        ("loss", "gradient"), family_errors(case, backend), FAMILY_TOLERANCES[dtype], strict=True
    ):
        require(error <= allowed, f"{case.op} {backend} {dtype}: {name} off by {error:.3g} > {allowed:.3g}.")


class _Draw:
    """Draws tensors of a batch on the CPU and puts them on the device."""

    def __init__(
        self, num_rows: int, vocab_size: int, dtype: torch.dtype, device: str, generator: torch.Generator
    ) -> None:
        self.num_rows, self.vocab_size, self.dtype, self.device = num_rows, vocab_size, dtype, device
        self._generator = generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def ids(self, *shape: int) -> Tensor:
        return torch.randint(2, self.vocab_size, shape, generator=self._generator)

    def columns(self, count: int) -> Tensor:
        return 2 + torch.randperm(self.vocab_size - 2, generator=self._generator)[:count]

    def placed(self, values: Tensor, *, is_leaf: bool = False, keeps_gap: bool = False) -> Tensor:
        """Rows that lie apart in memory, with NaN between them; or behind them, as padding columns."""
        gap = torch.full((values.shape[0], _GAP_COLUMNS), torch.nan, dtype=values.dtype)
        wide = torch.cat([values, gap], -1).to(self.dtype).to(self.device)
        shown = wide if keeps_gap else wide[:, : values.shape[1]]
        return shown.detach().requires_grad_(is_leaf)

    def step_ids(self) -> Tensor:
        """(N,) on the CPU: the first row in no step, one step of one row, and the others cut by chunks."""
        ids = torch.arange(self.num_rows) * (_NUM_STEPS - 1) // self.num_rows
        ids[-1] = _NUM_STEPS - 1
        ids[0] = -1
        return ids

    def teacher_list(self) -> tuple[Tensor, Tensor]:
        log_probs, ids = (3.0 * self.normal(self.num_rows, self.vocab_size)).log_softmax(-1).topk(_TOP_K)
        wide = torch.promote_types(self.dtype, torch.float32)
        return log_probs.to(self.device, wide), ids.to(self.device)


_Arguments = tuple[dict[str, Any], tuple[str, ...]]


def _steps(step_ids: Tensor) -> dict[str, Any]:
    weighting = SodWeighting()
    return {"step_ids": step_ids, "num_steps": _NUM_STEPS, "weighting": weighting, "reduction": "sum"}


def _logits_arguments(draw: _Draw, is_topk: bool, *, keeps_gap: bool = False) -> _Arguments:
    student = 3.0 * draw.normal(draw.num_rows, draw.vocab_size)
    teacher = student + draw.normal(*student.shape)
    # Column 0 is excluded by both models, column 1 by the student alone.
    student[:, :2], teacher[:, 0] = -torch.inf, -torch.inf
    arguments = _steps(draw.step_ids().to(draw.device))
    arguments["student_logits"] = draw.placed(student, is_leaf=True, keeps_gap=keeps_gap)
    if is_topk:
        arguments["teacher_log_probs"], ids = draw.teacher_list()
        # The student excludes the first two columns.
        arguments["teacher_ids"] = torch.where(ids < 2, -1, ids)
    else:
        arguments["teacher_logits"] = draw.placed(teacher, keeps_gap=keeps_gap)
    return arguments, ("student_logits",)


def _single_sweep_arguments(draw: _Draw, is_topk: bool) -> _Arguments:
    # The gradient gets the padding columns too, so that its rows are whole packs, as a cluster wants them.
    arguments, leaves = _logits_arguments(draw, is_topk, keeps_gap=True)
    weighting = torch.linspace(0.0, 1.5, _NUM_STEPS, device=draw.device)
    return arguments | {"vocab_size": draw.vocab_size, "weighting": weighting, "single_sweep": True}, leaves


def _log_prob_arguments(draw: _Draw, is_topk: bool) -> _Arguments:
    del is_topk
    logits = 3.0 * draw.normal(draw.num_rows, draw.vocab_size)
    logits[:, :2] = -torch.inf
    ids = draw.ids(draw.num_rows, 3)
    ids[0, 0] = -1
    arguments = {"student_logits": draw.placed(logits, is_leaf=True), "ids": ids.to(draw.device)}
    return arguments, ("student_logits",)


def _hidden_arguments(draw: _Draw, is_topk: bool) -> _Arguments:
    # Steps stay on the host: that is where chunks are planned, and nothing has to wait for a device.
    arguments = {**_steps(draw.step_ids()), "chunk_size": _CHUNK_ROWS, "entropy_coefficient": 0.1}
    head = draw.normal(draw.vocab_size, _STUDENT_WIDTH)
    arguments["student_hidden"] = draw.placed(draw.normal(draw.num_rows, _STUDENT_WIDTH), is_leaf=True)
    arguments["student_weight"] = draw.placed(0.5 * head, is_leaf=True)
    if is_topk:
        arguments["teacher_log_probs"], arguments["teacher_ids"] = draw.teacher_list()
    else:
        arguments["teacher_hidden"] = draw.placed(draw.normal(draw.num_rows, _TEACHER_WIDTH))
        arguments["teacher_weight"] = draw.placed(0.4 * draw.normal(draw.vocab_size, _TEACHER_WIDTH))
    return arguments, ("student_hidden", "student_weight")


def _unit_arguments(draw: _Draw, is_topk: bool) -> _Arguments:
    del is_topk
    rows = draw.num_rows
    columns = [draw.columns(draw.vocab_size // 2) for _ in range(2)]
    student_ids, teacher_ids = draw.ids(rows), draw.ids(rows)
    # Two tokens of the student against one of the teacher, then one to one over pairs of the map.
    starts = torch.arange(1, rows - 2)
    student_spans = torch.stack([starts + 1, starts + 2], -1)
    student_spans[0, 0] = 1
    teacher_spans = torch.stack([starts, starts + 1], -1)
    student_ids[starts[1:] + 1], teacher_ids[starts[1:]] = (each[: len(starts) - 1] for each in columns)
    student, teacher = (3.0 * draw.normal(rows, draw.vocab_size) for _ in range(2))
    student[:, 0], teacher[:, 0] = -torch.inf, -torch.inf
    arguments = _steps(draw.step_ids().to(draw.device))
    arguments |= {
        "student_logits": draw.placed(student, is_leaf=True),
        "teacher_logits": draw.placed(teacher),
        "units": Units(student_spans, teacher_spans).to(draw.device),
        "vocab_map": VocabMap(columns[0], columns[1]).to(draw.device),
        "student_ids": student_ids.to(draw.device),
        "teacher_ids": teacher_ids.to(draw.device),
    }
    return arguments, ("student_logits",)
