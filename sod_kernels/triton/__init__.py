"""Triton kernels; imported lazily, so that a machine without Triton only lacks this backend."""
