"""Triton's interpreter, without the half of its time that it spends on searching its own modules."""

import importlib.util
import os
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session", autouse=True)
def patch_the_language_once_per_launch():
    """Every launch patches `triton.language`, and so does every call of a device function in it, in vain."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    # Device functions of Triton's own library see the second of the two.
    both = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def patch_unless_done(_function):
        return patch(both) if tl.core.is_builtin(tl.load) else interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as context:
        context.setattr(interpreter, "_patch_lang", patch_unless_done)
        yield
