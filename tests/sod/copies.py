"""Copies of weights, as a device would hold them, and which of them are still in memory."""

from __future__ import annotations

from torch.multiprocessing.reductions import StorageWeakRef


class Copies:
    """Stands where `sod.teacher.local.copies_to` stands on a machine with a device."""

    def __init__(self):
        self.num_made = 0
        self._made = []

    def __call__(self, weight):
        copied = weight.clone()
        self.num_made += 1
        self._made.append((tuple(weight.shape), StorageWeakRef(copied.untyped_storage())))
        return copied

    @property
    def alive(self):
        """Shapes of the copies that somebody holds."""
        return [shape for shape, storage in self._made if not storage.expired()]
