"""The kernel that scales gradients which were kept."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_values"])
def scale_kernel(grad_logits_ptr, factor_ptr, num_values, BLOCK: tl.constexpr, TURNS: tl.constexpr):
    """Multiply numbers in place; where the factor is 1 a program ends after one load."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        first = tl.program_id(0).to(tl.int64) * (BLOCK * TURNS)
        for turn in range(TURNS):
            start = first + turn * BLOCK
            pointers = grad_logits_ptr + start + tl.arange(0, BLOCK)
            # Whole blocks go without a mask, which would keep them from being read 128 bits at a time.
            if start + BLOCK <= num_values:
                values = tl.load(pointers)
                tl.store(pointers, values.to(factor.dtype) * factor)
            elif start < num_values:
                is_there = start + tl.arange(0, BLOCK) < num_values
                values = tl.load(pointers, mask=is_there)
                tl.store(pointers, values.to(factor.dtype) * factor, mask=is_there)
