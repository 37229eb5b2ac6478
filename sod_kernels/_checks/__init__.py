"""Every raise for bad input: function, argument, what was got, what was wanted, what to do.

Shapes, dtypes and options are checked always. Values are checked at once on the CPU; on other devices, and in
compiled code, where looking would mean waiting, ids that would address foreign memory fail a device-side
assertion instead.
"""

from sod_kernels._checks import arguments, hidden, shards, tokens, topk, units, values, weightings

__all__ = ["arguments", "hidden", "shards", "tokens", "topk", "units", "values", "weightings"]
