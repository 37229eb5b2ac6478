"""Every binary that the backend can ask for: each kernel with each set of compile-time arguments."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from sod_kernels.triton.config import (
    LOG_PROB_BLOCK,
    LOG_PROB_WARPS,
    SCALE_BLOCK,
    SCALE_TURNS,
    SCALE_WARPS,
    STEP_SUMS_BLOCK,
    STEP_SUMS_WARPS,
    LaunchConfig,
    SweepConfig,
)
from sod_kernels.triton.launch import first_measures, gradient_meta, needs_second_sweep, sweep_meta
from sod_kernels.triton.units import unit_meta

_KINDS = (
    ("reverse_kl", False),
    ("reverse_kl", True),
    ("forward_kl", False),
    ("forward_kl", True),
    ("jsd", False),
)
_NO_REFERENCE = ("reference_ptr", "grad_token_reference_kl_ptr", "token_reference_kl_ptr")
_STUDENT_ALONE = (*_NO_REFERENCE, "teacher_ptr", "grad_token_kl_ptr", "sampled_ids_ptr")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kernel with its compile-time arguments.

    Attributes:
        name: What the table prints.
        kernel: The decorated function.
        meta: Its constexpr arguments.
        absent: Pointers that are None in this variant, if the kernel has them.
        num_warps: Warps per program.
        max_registers: Per thread, for the assembler; None leaves it the choice.
        wide_loads: 128-bit loads that the binary must have at least.
        wide_stores: 128-bit stores that it must have at least.
    """

    name: str
    kernel: Any
    meta: dict[str, Any]
    absent: tuple[str, ...] = ()
    num_warps: int
    max_registers: int | None = None
    wide_loads: int = 0
    wide_stores: int = 0


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What a caller may ask of `step_kl`, as far as it changes a binary."""

    divergence: str
    has_floor: bool
    has_reference: bool

    @property
    def needs_second(self) -> bool:
        return needs_second_sweep(self.divergence, has_floor=self.has_floor)

    @property
    def sides(self) -> int:
        return 3 if self.has_reference else 2

    @property
    def absent(self) -> tuple[str, ...]:
        return () if self.has_reference else _NO_REFERENCE

    def name(self, kernel: str) -> str:
        parts = [kernel, self.divergence, self.has_floor and "floor", self.has_reference and "reference"]
        return "-".join(str(part) for part in parts if part)


def variants(config: LaunchConfig, dtype: torch.dtype, vocab_size: int) -> list[Variant]:
    """List the kernels that one configuration launches.

    Args:
        config: From the table, or one to be judged.
        dtype: Of the logits.
        vocab_size: Valid columns, and width of the rows.

    Returns:
        Every kernel with every divergence, with and without a floor and a reference; each name once.
    """
    cases = [
        _Case(divergence=divergence, has_floor=floor, has_reference=reference)
        for (divergence, floor), reference in itertools.product(_KINDS, (False, True))
    ]
    sweep = sweep_meta(config.forward, dtype, vocab_size)
    listed = _first_sweeps(cases, config.forward, sweep)
    for case in cases:
        if case.needs_second:
            listed.append(_second_sweep(case, config.forward, sweep))
        listed.append(_finish_rows(case, config.forward))
    listed += _backwards(cases, config.backward, vocab_size)
    return listed + _small_kernels(config.forward, vocab_size) + _unit_kernels(config, vocab_size)


def _first_sweeps(cases: list[_Case], config: SweepConfig, sweep: dict[str, int]) -> list[Variant]:
    from sod_kernels.triton.forward_kernels import first_sweep_kernel

    def variant(name: str, measure: str, of_reference: str, absent: tuple[str, ...], sides: int) -> Variant:
        return Variant(
            name=name,
            kernel=first_sweep_kernel,
            meta={"MEASURE": measure, "REFERENCE_MEASURE": of_reference, **sweep},
            absent=absent,
            **config.resources,
            wide_loads=sides,
        )

    listed = {"alone": variant("first_sweep-student_alone", "none", "none", _STUDENT_ALONE, 1)}
    for case in cases:
        measure, of_reference = first_measures(
            case.divergence, has_floor=case.has_floor, has_reference=case.has_reference
        )
        # Several cases share a binary.
        name = f"first_sweep-{measure}" + (f"-reference_{of_reference}" if case.has_reference else "")
        listed[name] = variant(name, measure, of_reference, case.absent, case.sides)
    return list(listed.values())


def _second_sweep(case: _Case, config: SweepConfig, sweep: dict[str, int]) -> Variant:
    from sod_kernels.triton.forward_kernels import second_sweep_kernel

    # Only a floor makes it read the reference again.
    reads_reference = case.has_reference and case.has_floor
    return Variant(
        name=case.name("second_sweep"),
        kernel=second_sweep_kernel,
        meta={"DIVERGENCE": case.divergence, "SIDES": case.sides, **sweep},
        absent=() if reads_reference else _NO_REFERENCE,
        **config.resources,
        wide_loads=3 if reads_reference else 2,
    )


def _finish_rows(case: _Case, config: SweepConfig) -> Variant:
    from sod_kernels.triton.finish_kernels import finish_rows_kernel

    return Variant(
        name=case.name("finish_rows"),
        kernel=finish_rows_kernel,
        meta={"DIVERGENCE": case.divergence, "HAS_FLOOR": case.has_floor, "SPLITS": config.splits},
        absent=case.absent + (() if case.needs_second else ("partial_ptr",)),
        num_warps=1,
    )


def _backwards(cases: list[_Case], config: SweepConfig, vocab_size: int) -> list[Variant]:
    from sod_kernels.triton.backward_kernels import backward_kernel

    def variant(name: str, divergence: str, floor: bool, absent: tuple[str, ...], sides: int) -> Variant:
        meta = gradient_meta(config, vocab_size, vocab_size)
        return Variant(
            name=name,
            kernel=backward_kernel,
            meta={"DIVERGENCE": divergence, "HAS_FLOOR": floor, **meta},
            absent=absent,
            **config.resources,
            wide_loads=sides,
            wide_stores=1,
        )

    listed = [variant("backward-student_alone", "none", False, _STUDENT_ALONE, 1)]
    for case in cases:
        name = case.name("backward")
        listed.append(variant(name, case.divergence, case.has_floor, case.absent, case.sides))
    return listed


def _small_kernels(config: SweepConfig, vocab_size: int) -> list[Variant]:
    from sod_kernels.triton.finish_kernels import step_sums_kernel
    from sod_kernels.triton.log_prob_kernels import (
        finish_log_probs_kernel,
        gradient_at_ids_kernel,
        store_at_ids_kernel,
    )
    from sod_kernels.triton.scale_kernel import scale_kernel

    ids = {"BLOCK": LOG_PROB_BLOCK}
    listed = (
        ("step_sums", step_sums_kernel, {"BLOCK": STEP_SUMS_BLOCK}, STEP_SUMS_WARPS),
        ("finish_log_probs", finish_log_probs_kernel, {**ids, "SPLITS": config.splits}, LOG_PROB_WARPS),
        ("gradient_at_ids", gradient_at_ids_kernel, ids, LOG_PROB_WARPS),
        ("store_at_ids", store_at_ids_kernel, {**ids, "WIDTH": vocab_size}, LOG_PROB_WARPS),
    )
    small = [
        Variant(name=name, kernel=kernel, meta=meta, num_warps=warps) for name, kernel, meta, warps in listed
    ]
    scale = Variant(
        name="scale",
        kernel=scale_kernel,
        meta={"BLOCK": SCALE_BLOCK, "TURNS": SCALE_TURNS},
        num_warps=SCALE_WARPS,
        wide_loads=1,
        wide_stores=1,
    )
    return [*small, scale]


def _unit_kernels(config: LaunchConfig, vocab_size: int) -> list[Variant]:
    from sod_kernels.triton.unit_kernels import (
        finish_units_kernel,
        unit_columns_kernel,
        unit_mixture_kernel,
        unit_sweep_kernel,
    )

    forward, backward = config.forward, config.backward
    sweep = unit_meta(forward, vocab_size)
    columns = gradient_meta(backward, vocab_size, vocab_size)
    listed = [
        Variant(
            name=f"unit_sweep-{measure}",
            kernel=unit_sweep_kernel,
            meta={"MEASURE": measure, **sweep},
            **forward.resources,
        )
        for measure in ("reverse_kl", "forward_kl")
    ]
    listed.append(Variant(name="unit_mixture", kernel=unit_mixture_kernel, meta=sweep, **forward.resources))
    for divergence in ("reverse_kl", "forward_kl", "jsd"):
        listed += [
            Variant(
                name=f"finish_units-{divergence}",
                kernel=finish_units_kernel,
                meta={"DIVERGENCE": divergence, "SPLITS": sweep["SPLITS"]},
                absent=() if divergence == "jsd" else ("partial_ptr",),
                num_warps=1,
            ),
            Variant(
                name=f"unit_columns-{divergence}",
                kernel=unit_columns_kernel,
                meta={"DIVERGENCE": divergence, **columns},
                **backward.resources,
            ),
        ]
    return listed
