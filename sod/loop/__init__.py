"""The parts of a training round; none of them keeps state, `sod.trainer` does."""
