"""What the baselines of `unit_kl` share: its arguments, rows of whole vocabularies, its output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._checks import unit_kl as checks
from sod_kernels._layout import with_unit_stride
from sod_kernels._parallel import Shard
from sod_kernels._unit_scores import Side
from sod_kernels.functional.log_probs import sweep
from sod_kernels.functional.options import Options, Weighting
from sod_kernels.functional.unit_batch import Labels, UnitBatch, UnitChoice, resolve_units
from sod_kernels.functional.unit_output import UnitValues, finish_units
from sod_kernels.types import LogProbStats
from sod_kernels.unit_types import UnitKLOutput
from sod_kernels.units import Units, VocabMap


def frame_options(
    function: str,
    divergence: str,
    beta: float | None,
    temperature: float,
    weighting: Weighting,
    token_weights: Tensor | None,
    reduction: str,
    denominator: float | Tensor | None,
    backend: str,
) -> Options:
    """Put the options of a baseline together.

    Args:
        function: Name for messages.
        divergence: As in `step_kl`.
        beta: As in `step_kl`.
        temperature: As in `unit_kl`, like the rest.
        weighting: Step weights.
        token_weights: Weight of each student token, or None.
        reduction: One of the five names.
        denominator: In place of the last division of a mean, or None.
        backend: "auto" or a name.

    Returns:
        The options, checked.
    """
    return Options(
        function=function,
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        min_log_prob=None,
        step_divergence="kl",
        weighting=weighting,
        token_weights=token_weights,
        reduction=reduction,
        denominator=denominator,
        backend=backend,
    )


class UnitFrame:
    """Checked units of one call; tensors over units have a row for each one that is compared."""

    def __init__(
        self,
        options: Options,
        logits: tuple[Tensor, Tensor],
        ids: tuple[Tensor, Tensor],
        vocab_sizes: tuple[int | None, int | None],
        units: Units,
        vocab_map: VocabMap,
        unit_filter: str | None,
        steps: dict[str, Any],
    ) -> None:
        """Check a call.

        Args:
            options: Checked.
            logits: Of student and teacher, as given.
            ids: Labels of both, as given.
            vocab_sizes: Valid columns of both, as given.
            units: As given.
            vocab_map: As given.
            unit_filter: As given.
            steps: Step ids or mask, trajectories and number of steps, as given.

        Raises:
            TypeError: For a wrong type or dtype.
            ValueError: For a wrong shape, device, value or combination.
            BackendUnavailableError: If the backend cannot run here.
        """
        name = options.function
        student_size = checks.check_side(name, "student", logits[0], ids[0], vocab_sizes[0], None)
        teacher_size = checks.check_side(name, "teacher", logits[1], ids[1], vocab_sizes[1], logits[0])
        labels = (Labels(ids[0], student_size), Labels(ids[1], teacher_size))
        choice = UnitChoice(unit_filter=unit_filter)
        self.options = options
        self._batch: UnitBatch = resolve_units(options, choice, units, vocab_map, labels, **steps)
        self._backend = _dispatch.resolve(
            options.backend, logits[0].device.type, logits[0].dtype, function=name
        )
        self._logits = (logits[0], logits[1].detach())
        self._compared = torch.nonzero(self._batch.space.kinds >= 0).flatten()
        self._dtype = torch.promote_types(logits[0].dtype, torch.float32)

    def merged_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Multiply the distribution at each unit's last row with the probability of the tokens before.

        Returns:
            (u, V) log-masses of the student and of the teacher, and (u,) the student's entropy there.
        """
        rows, entropies = [], []
        for logits, side in zip(self._logits, (self._batch.student, self._batch.teacher), strict=True):
            last = side.spans[self._compared, 1] - 1
            scaled = logits[last, : side.vocab_size].to(self._dtype) / self._batch.temperature
            log_p = scaled.log_softmax(-1)
            is_earlier = side.rows_of(self._batch.space.kinds >= 0) if last.numel() else side.ids < 0
            path = self._span_sums(self._measure(logits, side, is_earlier.index_fill(0, last, False)), side)
            rows.append(log_p + path[:, None])
            entropies.append(torch.special.entr(log_p.detach().exp()).sum(-1))
        return rows[0], rows[1], entropies[0]

    def paths(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Measure the tokens of each unit.

        Returns:
            Of student and teacher: (u,) log-probability of the unit, and entropy at its last row.
        """
        found = []
        for logits, side in zip(self._logits, (self._batch.student, self._batch.teacher), strict=True):
            is_read = side.rows_of(self._batch.space.kinds >= 0) if self._compared.numel() else side.ids < 0
            stats = self._measure(logits, side, is_read)
            last = side.spans[self._compared, 1] - 1
            found.append((self._span_sums(stats, side), stats.student_entropy.detach()[last]))
        return found[0], found[1]

    def _measure(self, logits: Tensor, side: Side, is_read: Tensor) -> LogProbStats:
        """Log-probabilities of the labels of some rows, (rows, 1), and entropies; 0 at the others."""
        shard = Shard(first=0, width=side.vocab_size, vocab_size=side.vocab_size, group=None)
        return sweep(
            with_unit_stride(logits),
            torch.where(is_read, 0, -1),
            torch.where(is_read, side.ids, 0)[:, None],
            temperature=self._batch.temperature,
            shard=shard,
            backend=self._backend,
            function=self.options.function,
        )

    def _span_sums(self, stats: LogProbStats, side: Side) -> Tensor:
        """(u,) sums over the rows of each compared unit, through which gradients go."""
        units = side.units if side.spans.shape[0] else side.ids.new_full(side.ids.shape, -1)
        # One more place, for the rows of no unit.
        sums = stats.log_probs.new_zeros(side.spans.shape[0] + 1, dtype=torch.float64)
        sums = sums.index_add(0, units % sums.shape[0], stats.log_probs[:, 0].double())
        return sums[self._compared].to(self._dtype)

    def finish(
        self, loss: Tensor, entropy: Tensor, *, paths: tuple[Tensor, Tensor] | None = None
    ) -> UnitKLOutput:
        """Spread over all units, weigh, reduce and name.

        Args:
            loss: (u,).
            entropy: (u,) detached.
            paths: (u,) log-probabilities of the units, of student and teacher, detached; or None.

        Returns:
            The output.
        """

        def spread(values: Tensor) -> Tensor:
            nothing = values.new_zeros(self._batch.space.kinds.shape)
            return nothing.index_copy(0, self._compared, values)

        per_unit = spread(loss)
        values = UnitValues(
            unit_kl=per_unit,
            entropy=spread(entropy),
            distance=per_unit,
            steps=self._batch.space.steps,
            student_log_probs=None if paths is None else spread(paths[0]),
            teacher_log_probs=None if paths is None else spread(paths[1]),
        )
        return finish_units(self.options, values, self._batch, self._backend)
