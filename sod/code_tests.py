"""Programs against tests: what a task's tests are, and how many of them a program passes in the sandbox."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from sod.errors import DataError
from sod.sandbox import Sandbox, SandboxResult
from sod.tools import ToolUnavailableError
from sod.types import ToolOutcome

_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_RESULT = "sod-result:"
# Runs the program as a module, so that a guarded main does not start; the wanted value stays outside.
_DRIVER = """
import json as _json, sys as _sys, types as _types
_request = _json.loads(_REQUEST_)
_module = _sys.modules["program"] = _types.ModuleType("program")
exec("from typing import *", _module.__dict__)
exec(compile(_request["program"], "<code>", "exec", dont_inherit=True), _module.__dict__)
_owner = _module if hasattr(_module, _request["name"]) else _module.Solution()
_result = getattr(_owner, _request["name"])(*_request["arguments"])
print()
print(_MARK_ + _json.dumps(_result, default=list))
"""
# After this a last expression of the program is no last expression any more, and nothing is shown of it.
_NO_VALUE = "\n\npass\n"


@dataclass(frozen=True, kw_only=True)
class CodeTest:
    """One test of a program.

    Attributes:
        stdin: What the program reads, in a test of a whole program.
        arguments: What the function is called with, in a test of a function.
        wanted: What the program must print (a text), or what the function must return.
    """

    stdin: str = ""
    arguments: tuple[Any, ...] = ()
    wanted: Any


@dataclass(frozen=True, kw_only=True)
class CodeTests:
    """The tests of one task.

    Attributes:
        tests: In order.
        function_name: Function, or method of a class `Solution`, that is called; None runs the whole program.
    """

    tests: tuple[CodeTest, ...]
    function_name: str | None = None


def parse_code_tests(value: object, where: str) -> CodeTests:
    """Read the tests of a task, in the forms that data sets have them.

    A mapping `{"inputs": [...], "outputs": [...], "fn_name": ...}`, or LiveCodeBench's columns
    `{"public_test_cases": ..., "private_test_cases": ..., "metadata": {"func_name": ...}}` (each a value or
    its JSON text, private ones packed as there), or their list `[{"input", "output", "testtype"}, ...]`;
    every form also as JSON text, or under the key "ground_truth".

    Args:
        value: The column of the task.
        where: The task, for the messages.

    Returns:
        The tests.

    Raises:
        DataError: The value has none of the forms, holds no test, or names no function for functional tests.
    """
    try:
        tests = _parse(value)
    except (ValueError, TypeError, KeyError, binascii.Error, zlib.error, pickle.UnpicklingError) as error:
        raise DataError(
            f'reward "code": the tests of {where} cannot be read ({type(error).__name__}: {error}); wanted '
            '{"inputs": [...], "outputs": [...]}, optionally with "fn_name", or LiveCodeBench\'s test cases.'
        ) from error
    if not tests.tests:
        raise DataError(f'reward "code": {where} has no tests; leave the task out.')
    return tests


def last_program(text: str) -> str | None:
    """Find the last fenced Python block of an answer.

    Args:
        text: The final answer.

    Returns:
        Its code; None without a closed fence, or where the code is no Python.
    """
    blocks = _FENCE.findall(text)
    if not blocks:
        return None
    try:
        compile(blocks[-1], "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return str(blocks[-1])


def passed_share(
    program: str, tests: CodeTests, sandbox: Sandbox, *, timeout_s: float, stops_at_failure: bool = False
) -> float:
    """Run a program against its tests, each in a process of its own.

    Args:
        program: Python source.
        tests: The tests.
        sandbox: Where it runs.
        timeout_s: Deadline of one test in seconds.
        stops_at_failure: Whether the tests behind the first that fails count as failed without being run.

    Returns:
        Tests passed over all, in [0, 1].

    Raises:
        ToolUnavailableError: The sandbox is down, so that nothing can be said of the program.
    """
    num_passed = 0
    for test in tests.tests:
        if tests.function_name is None:
            result = sandbox.run(program + _NO_VALUE, stdin=test.stdin, timeout_s=timeout_s)
        else:
            result = sandbox.run(_call_of(program, tests.function_name, test), timeout_s=timeout_s)
        if result.outcome is ToolOutcome.UNAVAILABLE:
            raise ToolUnavailableError(f"the tests could not be run: {result.stderr}")
        if _passes(test, result, is_function=tests.function_name is not None):
            num_passed += 1
        elif stops_at_failure:
            break
    return num_passed / len(tests.tests)


def same_output(printed: str, wanted: str) -> bool:
    """Compare what a program printed with what it should have: lines, white space at their ends aside.

    Two lines are also equal where they hold the same numbers, field by field (1.0 and 1).

    Args:
        printed: Standard output.
        wanted: The expected output.
    """
    lines, wanted_lines = ([line.strip() for line in text.strip().splitlines()] for text in (printed, wanted))
    return len(lines) == len(wanted_lines) and all(map(_same_line, lines, wanted_lines))


def _call_of(program: str, name: str, test: CodeTest) -> str:
    request = json.dumps({"program": program, "name": name, "arguments": test.arguments})
    return _DRIVER.replace("_REQUEST_", repr(request)).replace("_MARK_", repr(_RESULT))


def _same_line(line: str, wanted: str) -> bool:
    if line == wanted:
        return True
    fields, wanted_fields = line.split(), wanted.split()
    try:
        return [Decimal(field) for field in fields] == [Decimal(field) for field in wanted_fields]
    except InvalidOperation:
        return False


def _passes(test: CodeTest, result: SandboxResult, *, is_function: bool) -> bool:
    if result.outcome is not ToolOutcome.OK:
        return False
    if not is_function:
        return not result.truncated and same_output(result.stdout, str(test.wanted))
    lines = result.stdout.splitlines()
    if not lines or not lines[-1].startswith(_RESULT):
        return False
    try:
        returned = json.loads(lines[-1][len(_RESULT) :])
    except (ValueError, RecursionError):
        return False
    return bool(returned == test.wanted)


def _parse(value: object) -> CodeTests:
    value = _unpacked(value)
    if isinstance(value, Mapping) and "ground_truth" in value:
        return _parse(value["ground_truth"])
    if isinstance(value, Mapping) and "inputs" in value:
        return _from_columns(value)
    if isinstance(value, Mapping):
        cases = [*_unpacked(value["public_test_cases"]), *_unpacked(value.get("private_test_cases") or [])]
        metadata = _unpacked(value.get("metadata") or {})
        return _from_cases(cases, metadata.get("func_name"))
    return _from_cases(value, None)


def _from_columns(value: Mapping[str, Any]) -> CodeTests:
    name = value.get("fn_name")
    inputs, outputs = value["inputs"], value["outputs"]
    if name is None:
        pairs = [(_joined(given), _joined(wanted)) for given, wanted in zip(inputs, outputs, strict=True)]
        return CodeTests(tests=tuple(CodeTest(stdin=given, wanted=wanted) for given, wanted in pairs))
    tests = []
    for given, wanted in zip(inputs, outputs, strict=True):
        # These sets wrap the return value into a list of one.
        is_wrapped = isinstance(wanted, list) and len(wanted) == 1
        tests.append(
            CodeTest(arguments=_arguments(given), wanted=wanted[0] if is_wrapped else _loaded(wanted))
        )
    return CodeTests(tests=tuple(tests), function_name=name)


def _from_cases(cases: Any, function_name: str | None) -> CodeTests:
    if not isinstance(cases, Sequence):
        raise TypeError(f"got {type(cases).__name__}")
    kinds = {case.get("testtype", "stdin") for case in cases}
    if kinds <= {"stdin"}:
        tests = tuple(CodeTest(stdin=case["input"], wanted=case["output"]) for case in cases)
        return CodeTests(tests=tests)
    if kinds != {"functional"}:
        raise ValueError(f"test types {sorted(kinds)}")
    if function_name is None:
        raise KeyError("func_name")
    return CodeTests(
        tests=tuple(
            CodeTest(arguments=_arguments(case["input"]), wanted=_loaded(case["output"])) for case in cases
        ),
        function_name=function_name,
    )


def _arguments(value: Any) -> tuple[Any, ...]:
    """One JSON value per line, or a list that is ready."""
    if isinstance(value, str):
        return tuple(json.loads(line) for line in value.splitlines() if line.strip())
    return tuple(value)


def _loaded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _joined(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _unpacked(value: Any) -> Any:
    """Read JSON text, plain or as LiveCodeBench packs its private tests."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        packed = zlib.decompress(base64.b64decode(value, validate=True))
        return json.loads(_TextUnpickler(io.BytesIO(packed)).load())


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickled text and nothing else: a pickle of anything more could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no text")
