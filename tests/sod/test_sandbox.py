"""What ordinary code can do in the sandbox, and what the caller gets to see of it."""

import pytest

from sod.sandbox import LocalSandbox, SandboxResult, sandbox_problem
from sod.types import ToolOutcome

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def sandbox():
    with LocalSandbox(num_workers=1) as sandbox:
        yield sandbox


def output(sandbox: LocalSandbox, code: str, **options) -> str:
    result = sandbox.run(code, timeout_s=options.pop("timeout_s", 30.0), **options)
    assert (result.outcome, result.stderr, result.exit_code) == (ToolOutcome.OK, "", 0)
    return result.stdout


def test_nothing_is_wrong_on_a_machine_where_it_runs():
    assert sandbox_problem() is None


def test_printed_text_and_the_last_value_are_shown(sandbox):
    result = sandbox.run("print('a')\nx = 20\nx + 1")
    assert result == SandboxResult(
        outcome=ToolOutcome.OK,
        stdout="a\n21\n",
        stderr="",
        exit_code=0,
        seconds=result.seconds,
        truncated=False,
    )
    assert 0 < result.seconds < 10


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("", ""),
        ("# nothing", ""),
        ("1; 2", "2\n"),
        ("1\nNone", ""),
        ("x = 3", ""),
        ("print(1)", "1\n"),
        ("(1,\n 2)  # a comment", "(1, 2)\n"),
        ("'''a\nb'''", "'a\\nb'\n"),
        ("def f():\n    return 1\nf()\n\n", "1\n"),
        ("if True:\n    7", ""),
        ("from __future__ import annotations\ndef f(x: nonsense): pass\n(lambda: 5)()", "5\n"),
        ("__name__", "'__main__'\n"),
        ("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A", "True\n"),
        ("_ = 1\n[i for i in range(3)]", "[0, 1, 2]\n"),
        ("'\U0001f600 ä \\ud800'", "'\U0001f600 ä \\ud800'\n"),
        ("print('\\ud800')", "\\ud800\n"),
    ],
)
def test_last_value_is_found_in_the_syntax_tree(sandbox, code, shown):
    assert output(sandbox, code) == shown


def test_traceback_shows_the_frames_of_the_code_alone(sandbox):
    result = sandbox.run("import json\n\ndef parse(text):\n    return json.loads(text)\n\nparse('{')")
    assert result.outcome is ToolOutcome.TOOL_ERROR
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "Traceback (most recent call last):\n"
        '  File "<code>", line 6, in <module>\n'
        "    parse('{')\n"
        '  File "<code>", line 4, in parse\n'
        "    return json.loads(text)\n"
        "           ^^^^^^^^^^^^^^^^\n"
        "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)\n"
    )


def test_markers_of_a_traceback_stand_below_what_failed(sandbox):
    result = sandbox.run("x = 0\r\ny = '\u2028'\r\n1 / x")
    assert result.stderr.splitlines()[1:4] == [
        '  File "<code>", line 3, in <module>',
        "    1 / x",
        "    ~~^~~",
    ]


def test_chained_and_grouped_exceptions_show_no_foreign_frames(sandbox):
    result = sandbox.run(
        "import json\n"
        "def work():\n"
        "    try: json.loads('')\n"
        "    except ValueError as error: raise KeyError('k') from error\n"
        "try: work()\n"
        "except KeyError as error: raise ExceptionGroup('both', [error, TypeError()])"
    )
    assert "JSONDecodeError" in result.stderr
    assert "ExceptionGroup: both" in result.stderr
    assert result.stderr.count('File "<code>"') >= 3
    assert "json/decoder.py" not in result.stderr
    assert "/sandbox" not in result.stderr


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("x = = 1", "SyntaxError: invalid syntax"),
        ("print('never')\nreturn 3", "SyntaxError: 'return' outside function"),
        ("print('never')\nyield", "SyntaxError: 'yield' outside function"),
        ("print(1, \x00)", "null bytes"),
        ("'\ud800'", "surrogates not allowed"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_code_that_cannot_run_says_why(sandbox, code, last_line):
    result = sandbox.run(code)
    assert (result.outcome, result.exit_code, result.stdout) == (ToolOutcome.TOOL_ERROR, 1, "")
    assert last_line in result.stderr


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("raise SystemExit", 0, ""),
        ("exit_ = __import__('sys').exit\nexit_(0)", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no luck')", 1, "no luck\n"),
    ],
)
def test_exit_gives_its_code(sandbox, code, exit_code, stderr):
    result = sandbox.run(code)
    assert (result.exit_code, result.stderr) == (exit_code, stderr)
    assert result.outcome is (ToolOutcome.TOOL_ERROR if exit_code else ToolOutcome.OK)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 15),
        ("import os; os.abort()", 6),
        ("import ctypes; ctypes.string_at(0)", 11),
        ("import signal; signal.raise_signal(9)", 9),
    ],
)
def test_signal_is_killed(sandbox, code, number):
    result = sandbox.run("print('before')\n" + code)
    assert (result.outcome, result.exit_code, result.stdout) == (ToolOutcome.KILLED, -number, "before\n")


def test_stdin_reaches_the_code(sandbox):
    code = "import sys\nname = input()\nrest = sys.stdin.read()\nprint(repr(name), len(rest), rest[-2:])"
    text = "Grüße\n" + "é" * 300_000 + "\U0001f600"
    assert output(sandbox, code, stdin=text) == "'Grüße' 300001 é\U0001f600\n"
    assert output(sandbox, "open(0).read()") == "''\n"


def test_stdout_and_stderr_are_kept_apart(sandbox):
    result = sandbox.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('out', end='')")
    assert (result.stdout, result.stderr) == ("out\nout", "err\n")


def test_replaced_streams_lose_nothing(sandbox):
    code = "import io, sys\nprint('a', end='')\nsys.stdout = io.StringIO()\nprint('b')"
    assert output(sandbox, code) == "a"
    assert sandbox.run("import sys\nprint('a')\nsys.stdout.close()").stdout == "a\n"


def test_long_output_keeps_both_ends():
    with LocalSandbox(num_workers=1, max_output_bytes=1000) as sandbox:
        exact = sandbox.run("print('x' * 999)")
        assert (len(exact.stdout), exact.truncated) == (1000, False)
        result = sandbox.run("print('first')\nprint('x' * 100_000)\nprint('last')")
    assert result.outcome is ToolOutcome.OK
    assert result.truncated
    assert result.stdout.startswith("first\nxxx")
    assert result.stdout.endswith("xxx\nlast\n")
    assert "\n... [99012 bytes dropped] ...\n" in result.stdout
    assert result.stdout.count("x") + 99012 == 100_000


def test_huge_code_runs_and_an_absurd_size_is_refused(sandbox):
    code = "total = 0\n" + "total += 1\n" * 50_000 + "total"
    assert output(sandbox, code) == "50000\n"
    result = sandbox.run("#" * (9 << 20))
    assert result.outcome is ToolOutcome.TOOL_ERROR
    assert result.stderr == "code has 9437184 bytes; at most 8388608 are accepted"


def test_threads_executors_and_asyncio_work(sandbox):
    assert (
        output(
            sandbox,
            "import asyncio, atexit, threading\n"
            "from concurrent.futures import ThreadPoolExecutor\n"
            "pool = ThreadPoolExecutor(4)\n"
            "print(sum(pool.map(lambda x: x * x, range(10))))\n"
            "async def main():\n"
            "    await asyncio.sleep(0.01)\n"
            "    return await asyncio.to_thread(lambda: 'from a thread')\n"
            "print(asyncio.run(main()))\n"
            "threading.Thread(target=lambda: (threading.Event().wait(0.05), print('late'))).start()\n"
            "_ = atexit.register(print, 'at exit')\n",
        )
        == "285\nfrom a thread\nlate\nat exit\n"
    )


def test_common_library_code_works(sandbox):
    assert (
        output(
            sandbox,
            "import csv, datetime, decimal, fractions, hashlib, itertools, json, math, os, random, re\n"
            "import shutil, sqlite3, statistics, tempfile, time, uuid\n"
            "with tempfile.TemporaryDirectory() as folder:\n"
            "    open(folder + '/a', 'w').write('1')\n"
            "    shutil.copy2(folder + '/a', folder + '/b')\n"
            "    shutil.copytree(folder, 'tree')\n"
            "database = sqlite3.connect('x.db')\n"
            "database.execute('create table t (a)'); database.commit()\n"
            "random.random(), uuid.uuid4(), time.sleep(0.001), datetime.datetime.now(), os.cpu_count()\n"
            "sorted(os.listdir()), sorted(os.listdir('tree')), str(fractions.Fraction(1, 3))",
        )
        == "(['tree', 'x.db'], ['a', 'b'], '1/3')\n"
    )


def test_module_that_the_code_wrote_can_be_imported(sandbox):
    assert output(sandbox, "open('helper.py', 'w').write('x = 4')\nimport helper\nhelper.x") == "4\n"


def test_random_numbers_differ_between_calls(sandbox):
    code = "import random; random.random()"
    assert output(sandbox, code) != output(sandbox, code)


def test_sets_print_in_the_same_order_in_every_worker():
    code = "print({str(i) for i in range(20)})"
    texts = set()
    for _ in range(2):
        with LocalSandbox(num_workers=1) as fresh:
            texts.add(output(fresh, code))
    assert len(texts) == 1


LEAVE_TRACES = """
import builtins, json, os, sys, threading, time
builtins.leak = json.leak = 1
os.environ['LEAK'] = '1'
os.makedirs('deep/' * 50); open('deep/file', 'w').write('x')
open('/tmp/file', 'w').write('x'); open('.hidden', 'w').write('x')
os.symlink('/tmp', 'link')
os.chmod('deep', 0); os.chmod('/tmp/file', 0)
try: os.chmod('/work', 0o700); os.utime('/work', (5, 5))
except OSError: pass
sys.path.append('/leak')
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
LOOK_FOR_TRACES = """
import builtins, json, os, sys, threading
print(hasattr(builtins, 'leak'), hasattr(json, 'leak'), 'LEAK' in os.environ, '/leak' in sys.path)
print(os.listdir('/work'), os.listdir('/tmp'), threading.active_count())
print(os.stat('/work').st_mode & 0o777 == 0o777, os.stat('/work').st_mtime, os.stat('/tmp').st_mtime)
print([name for name in sys.modules if name.startswith('sod')], [p for p in sys.path if p == '/sandbox'])
"""


def test_nothing_is_left_of_the_call_before(sandbox):
    before = output(sandbox, LOOK_FOR_TRACES)
    assert before == "False False False False\n[] [] 1\nTrue 0.0 0.0\n[] []\n"
    for _ in range(3):
        output(sandbox, LEAVE_TRACES)
        assert output(sandbox, LOOK_FOR_TRACES) == before


def test_ordinary_files_do_not_cost_the_worker(sandbox):
    pids = sandbox.worker_pids
    output(sandbox, "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nopen('/tmp/d', 'w').close()")
    assert output(sandbox, "import os\nos.listdir('/work') + os.listdir('/tmp')") == "[]\n"
    assert sandbox.worker_pids == pids


def test_mountain_of_files_costs_the_worker_and_nothing_else(sandbox):
    pids = sandbox.worker_pids
    assert output(sandbox, "for i in range(3000): open(str(i), 'w').close()\nprint('made')") == "made\n"
    assert output(sandbox, "import os; os.listdir()") == "[]\n"
    assert sandbox.worker_pids != pids


def test_deep_and_wide_trees_are_gone_after_the_call(sandbox):
    deep = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nprint('made')"
    wide = "import os\nos.mkdir('a')\nfor i in range(3000): open(f'a/{i}', 'w').close()\nprint('made')"
    for code in (deep, wide):
        assert output(sandbox, code) == "made\n"
        assert output(sandbox, "import os; os.listdir()") == "[]\n"


def test_preloaded_module_is_there_and_fresh_in_every_call():
    with LocalSandbox(num_workers=1, preload=("decimal",)) as sandbox:
        code = (
            "import sys\nprint('decimal' in sys.modules)\nimport decimal\nprint(decimal.getcontext().prec)\n"
        )
        for _ in range(2):
            assert output(sandbox, code + "decimal.getcontext().prec = 5") == "True\n28\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "LocalSandbox: num_workers is 0, wanted at least 1."),
        ({"memory_bytes": 1}, "LocalSandbox: memory_bytes is 1, wanted at least 67108864."),
        ({"disk_bytes": 0}, "LocalSandbox: disk_bytes is 0, wanted at least 65536."),
        ({"max_output_bytes": 1}, "LocalSandbox: max_output_bytes is 1, wanted at least 256."),
    ],
)
def test_size_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalSandbox(**options)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf"), 4000])
def test_timeout_out_of_range_is_refused(sandbox, timeout_s):
    with pytest.raises(ValueError, match=f"timeout_s is {timeout_s}, wanted above 0 and at most 3600"):
        sandbox.run("1", timeout_s=timeout_s)


def test_input_that_is_not_text_is_refused(sandbox):
    with pytest.raises(
        TypeError, match=r"LocalSandbox\.run: code is bytes, wanted str\. Decode bytes first\."
    ):
        sandbox.run(b"1")
    with pytest.raises(TypeError, match=r"LocalSandbox\.run: stdin is NoneType"):
        sandbox.run("1", stdin=None)
