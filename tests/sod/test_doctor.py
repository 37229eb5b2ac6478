"""The examination before a run: each fault is found, named and graded; a sound run has none."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from typer.testing import CliRunner

from sod.chat_templates import HERMES_TEMPLATE
from sod.cli import app
from sod.config_file import load_config
from sod.doctor import Finding, Level, diagnose, examine_machine, examine_run
from sod.doctor import machine as machine_part
from sod.doctor.memory import FrozenShapes, ModelShape, estimate_host, estimate_phases
from sod.models import build_qwen3, load_architecture
from sod.testing import make_tiny_checkpoint, make_tiny_tokenizer
from tests.sod.fake_server import FakeServer

TOOLBOX = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b
'''
RUN = """
[run]
output = "out"
[student]
model = "student"
enable_thinking = false
[teacher]
model = "teacher"
[data]
train = "train.jsonl"
eval = "eval.jsonl"
[environment]
name = "tools"
tools = ["doctor_toolbox:add"]
reward = "number"
[rollout]
num_samples = 2
max_turn_tokens = 64
max_trajectory_tokens = 1024
[trainer]
rounds = 2
tasks_per_round = 4
minibatch_trajectories = 4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("doctor")
    make_tiny_checkpoint(root / "student", hidden_size=32)
    make_tiny_checkpoint(root / "teacher", hidden_size=64, seed=1)
    make_tiny_checkpoint(root / "stranger", hidden_size=32, vocab_size=300)
    rows = [{"prompt": f"What is {a} plus 2?", "answer": str(a + 2)} for a in range(6)]
    for name in ("train", "eval"):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "doctor_toolbox.py").write_text(TOOLBOX)
    (root / "run.toml").write_text(RUN)
    return root


@pytest.fixture(autouse=True)
def _toolbox(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("doctor_toolbox", None)


@pytest.fixture
def examined(folder) -> Callable[..., list[Finding]]:
    def examine(*sets: str) -> list[Finding]:
        return diagnose(load_config(folder / "run.toml", list(sets)))

    return examine


def one(findings: list[Finding], area: str, subject: str) -> Finding:
    (found,) = [each for each in findings if (each.area, each.subject) == (area, subject)]
    return found


def edited(folder: Path, name: str, file: str, **changes: object) -> str:
    """Copy the student with other settings in one of its files."""
    target = make_tiny_checkpoint(folder / name, hidden_size=32)
    settings = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(settings | changes))
    return name


def test_a_sound_run_has_no_finding_worse_than_a_note_and_every_part_is_examined(examined):
    findings = examined()
    assert {each.level for each in findings} <= {Level.OK, Level.NOTE}
    assert not findings.is_fatal
    seen = {(each.area, each.subject) for each in findings}
    assert seen >= {
        ("machine", "versions"),
        ("machine", "device"),
        ("kernels", "native (chosen)"),
        ("settings", "algorithm"),
        ("settings", "sampling"),
        ("data", "training tasks"),
        ("data", "held-out tasks"),
        ("data", "prompts"),
        ("student", "vocabulary"),
        ("student", "logits"),
        ("student", "context"),
        ("student", "stop tokens"),
        ("teacher", "tokenizer"),
        ("template", "append-only"),
        ("template", "thinking"),
        ("environment", "tools"),
        ("memory", "rollout"),
        ("memory", "score"),
        ("memory", "update"),
        ("disk", "checkpoints"),
    }
    assert "20.4 points" in one(findings, "data", "held-out tasks").text
    assert one(findings, "environment", "tools").text == "add"


@pytest.mark.parametrize(
    ("sets", "area", "subject", "level", "words"),
    [
        (["data.train='absent.jsonl'"], "data", "training tasks", Level.FATAL, "absent.jsonl"),
        (["data.eval='absent.jsonl'"], "data", "held-out tasks", Level.FATAL, "absent.jsonl"),
        (["trainer.tasks_per_round=7"], "data", "training tasks", Level.WARNING, "more than once"),
        (["teacher.model='stranger'"], "teacher", "tokenizer", Level.FATAL, "differ at"),
        (
            ["algorithm.name='stm'", "reference.model='stranger'"],
            "reference",
            "tokenizer",
            Level.FATAL,
            "Take a reference with the student's tokenizer.",
        ),
        (["student.model='./absent'"], "student", "checkpoint", Level.FATAL, "no such folder"),
        (["trainer.device='cuda'"], "machine", "device", Level.FATAL, "no CUDA device"),
        (["environment.tools=['doctor_toolbox:nope']"], "environment", "build", Level.FATAL, "nope"),
        (
            ["rollout.max_trajectory_tokens=8192"],
            "student",
            "context",
            Level.FATAL,
            "4,096 positions, but it reads up to 8,192 tokens; lower [rollout] max_trajectory_tokens",
        ),
        (
            ["rollout.max_trajectory_tokens=64", "rollout.max_turn_tokens=16"],
            "data",
            "prompts",
            Level.FATAL,
            "no room to answer",
        ),
        (["rollout.max_turn_tokens=1024"], "data", "prompts", Level.WARNING, "is cut off"),
        (
            ["algorithm.name='opd'", "rollout.top_p=0.9"],
            "settings",
            "sampling",
            Level.WARNING,
            "truncated policy",
        ),
        (["algorithm.name='atod'"], "settings", "annealing", Level.WARNING, "ends after 2 rounds"),
        (
            ["optimizer.name='adamw'", "optimizer.warmup_updates=4"],
            "settings",
            "warm-up",
            Level.WARNING,
            "the run has 4 updates",
        ),
        (
            ["trainer.max_microbatch_tokens=1000000000000"],
            "memory",
            "update",
            Level.FATAL,
            "lower [trainer] max_microbatch_tokens",
        ),
    ],
)
def test_a_fault_is_found_named_and_graded(examined, sets, area, subject, level, words):
    found = [each for each in examined(*sets) if (each.area, each.subject) == (area, subject)]
    assert any(each.level is level and words in each.text for each in found), found


def test_thinking_that_nobody_decided_on_is_a_warning(folder, examined):
    text = (folder / "run.toml").read_text().replace("enable_thinking = false\n", "")
    (folder / "undecided.toml").write_text(text)
    finding = one(diagnose(load_config(folder / "undecided.toml", [])), "template", "thinking")
    assert finding.level is Level.WARNING
    assert "enable_thinking is not set" in finding.text
    on = one(examined("student.enable_thinking=true"), "template", "thinking")
    assert (on.level, on.text) == (Level.OK, "on")


def test_a_scale_of_the_logits_is_fatal_and_a_cap_is_told(folder, examined):
    name = edited(folder, "scaled", "config.json", logit_scale=0.25)
    finding = one(examined(f"student.model='{name}'"), "student", "logits")
    assert finding.level is Level.FATAL
    assert "logit_scale = 0.25" in finding.text
    name = edited(folder, "capped", "config.json", final_logit_softcapping=30.0)
    finding = one(examined(f"student.model='{name}'"), "student", "logits")
    assert (finding.level, finding.text) == (Level.OK, "the head's own: cap 30, no scale")


def test_a_template_that_changes_what_was_read_is_fatal_and_names_the_message(folder, examined):
    target = make_tiny_checkpoint(folder / "counting", hidden_size=32)
    # Writes how many messages there are before all of them.
    (target / "chat_template.jinja").write_text("{{- messages | length -}}" + HERMES_TEMPLATE)
    finding = one(examined("student.model='counting'"), "template", "append-only")
    assert finding.level is Level.FATAL
    assert re.search(r"message 1 \(role 'assistant'\) changes what .* wrote before it", finding.text)


def test_ratios_are_said_to_be_of_the_sampling_temperature_where_there_are_any(examined):
    sets = ("rollout.temperature=0.7", "trainer.alignment_bound=0.1")
    with_ratio = one(
        examined("algorithm.name='opd'", "algorithm.form='sampled'", *sets), "settings", "sampling"
    ).text
    assert with_ratio == "temperature 0.7, top_p 1; probability ratios are taken at this temperature"
    without = one(examined("algorithm.name='opd'", *sets), "settings", "sampling").text
    assert without == "temperature 0.7, top_p 1"


@pytest.mark.parametrize(
    ("stops", "level", "words"),
    [
        ([0], Level.WARNING, "settings stop at '<|endoftext|>' (0)"),
        ([0, 2], Level.NOTE, "also stops at '<|endoftext|>' (0)"),
        (2, Level.OK, "a turn ends at '<|im_end|>' (2)"),
    ],
)
def test_stop_tokens_are_compared_with_the_checkpoints_own(folder, examined, stops, level, words):
    name = edited(folder, f"stops_{level}", "generation_config.json", eos_token_id=stops)
    finding = one(examined(f"student.model='{name}'"), "student", "stop tokens")
    assert finding.level is level
    assert words in finding.text


def test_without_generation_settings_the_model_settings_count(folder, examined):
    target = make_tiny_checkpoint(folder / "bare", hidden_size=32)
    (target / "generation_config.json").unlink()
    finding = one(examined("student.model='bare'"), "student", "stop tokens")
    assert finding.level is Level.OK


def test_columns_that_pad_the_vocabulary_are_counted(folder, examined):
    number = max(make_tiny_tokenizer(vocab_size=512).get_vocab().values()) + 1
    finding = one(examined(), "student", "vocabulary")
    assert f"{number:,} tokens in 512 columns; {512 - number:,} columns beyond" in finding.text


def test_supervised_training_counts_its_conversations(folder):
    messages = [{"role": "user", "content": "What is 1 plus 2?"}, {"role": "assistant", "content": "3"}]
    (folder / "expert.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    toml = folder / "sft.toml"
    toml.write_text(
        '[run]\noutput = "sft"\n[student]\nmodel = "student"\n[data]\ntrain = "expert.jsonl"\n'
        '[algorithm]\nname = "sft"\n[trainer]\nrounds = 1\ntasks_per_round = 1\n'
    )
    findings = diagnose(load_config(toml, []))
    assert one(findings, "data", "expert trajectories").text == "1"
    assert {each.subject for each in findings if each.area == "memory"} == {"update"}


def test_the_sandbox_is_examined_for_a_run_with_the_python_tool(examined):
    finding = one(examined("environment.tools=['python']"), "sandbox", "self-test")
    assert finding.level is Level.OK
    assert finding.text.startswith("isolated; a call took ")


@pytest.mark.sandbox
def test_a_sandbox_that_computes_wrongly_is_fatal(monkeypatch):
    monkeypatch.setattr(machine_part, "_ANSWER", "absent")
    finding = one(examine_machine(), "sandbox", "self-test")
    assert finding.level is Level.FATAL
    assert finding.text.endswith("wanted absent")


def test_a_sandbox_that_cannot_be_had_is_fatal_only_where_it_is_called(examined, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert one(examine_machine(), "sandbox", "self-test").level is Level.NOTE
    found = one(examined("environment.tools=['python']"), "environment", "build")
    assert found.level is Level.FATAL
    assert "bubblewrap" in found.text


def test_a_backend_with_a_wrong_gradient_is_fatal(monkeypatch):
    right = machine_part._loss_and_gradient

    def wrong(student, teacher, backend):
        loss, gradient = right(student, teacher, backend)
        return loss, gradient * (1.01 if backend == "native" else 1.0)

    monkeypatch.setattr(machine_part, "_loss_and_gradient", wrong)
    findings = examine_machine()
    assert one(findings, "kernels", "native (chosen)").level is Level.FATAL
    assert one(findings, "kernels", "reference").level is Level.OK


@pytest.mark.parametrize("has_checkpointing", [False, True])
def test_the_estimate_of_activations_is_near_what_a_forward_pass_keeps(has_checkpointing):
    model = build_qwen3(
        vocab_size=300,
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        intermediate_size=160,
        max_positions=512,
        seed=0,
    )
    model.train()
    if has_checkpointing:
        model.activation_checkpointing_enable()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.arange(256).repeat(2, 1)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    shape = ModelShape.of(model)
    estimate = shape.activation_bytes(ids.numel(), 4, has_checkpointing=has_checkpointing)
    if has_checkpointing:
        # One layer is computed again at a time, after the pass whose inputs are counted here.
        inside = shape.activation_bytes(ids.numel(), 4, has_checkpointing=False)
        estimate -= (inside - 2 * ids.numel() * shape.hidden_size * 4) // shape.num_layers
    assert hidden.requires_grad
    assert 0.75 <= estimate / sum(kept.values()) <= 1.34


def test_memory_follows_the_settings(folder):
    config = load_config(folder / "run.toml", [])
    shape = ModelShape.of(load_architecture(config.student))
    of_teacher = ModelShape.of(load_architecture(config.teacher))
    teacher = FrozenShapes(resident=[of_teacher])
    base = estimate_phases(config, shape, teacher)
    muon = load_config(folder / "run.toml", ["optimizer.name='muon'"])
    assert estimate_phases(muon, shape, teacher)["update"] == base["update"] - shape.weight_bytes
    stm = load_config(folder / "run.toml", ["algorithm.name='stm'"])
    assert estimate_phases(stm, shape, teacher)["score"] == base["score"] + shape.weight_bytes
    more = load_config(folder / "run.toml", ["trainer.teacher_cache_mib=2048"])
    assert estimate_phases(more, shape, teacher)["update"] == base["update"] + (1 << 30)
    # Of a teacher only hidden states are held, of the student's update the logits of a chunk.
    wide = load_config(folder / "run.toml", ["trainer.max_microbatch_tokens=400000"])
    wider = load_config(folder / "run.toml", ["trainer.max_microbatch_tokens=800000"])
    first, second = (estimate_phases(each, shape, teacher) for each in (wide, wider))
    assert second["score"] - first["score"] == 400_000 * of_teacher.hidden_size * 4
    activations = shape.activation_bytes(400_000, 4, has_checkpointing=False)
    assert second["update"] - first["update"] == activations
    longer = load_config(folder / "run.toml", ["rollout.max_trajectory_tokens=2048"])
    cache = 8 * 1024 * shape.num_layers * shape.key_value_size * 4
    assert estimate_phases(longer, shape, teacher)["rollout"] == base["rollout"] + cache


def test_memory_of_a_teacher_that_is_offloaded(folder):
    config = load_config(folder / "run.toml", [])
    shape = ModelShape.of(load_architecture(config.student))
    small = replace(ModelShape.of(load_architecture(config.teacher)), num_parameters=10**9)
    large = replace(small, num_parameters=2 * 10**9, hidden_size=2 * small.hidden_size)
    weights, head = 4 * 10**9, 4 * small.vocab_rows * small.hidden_size
    rows = 4 * config.trainer.max_microbatch_tokens * small.hidden_size
    cache = config.trainer.teacher_cache_mib << 20
    resident = estimate_phases(config, shape, FrozenShapes(resident=[small]))
    offloaded = estimate_phases(config, shape, FrozenShapes(offloaded=[small]))
    assert resident["rollout"] - offloaded["rollout"] == weights
    assert resident["score"] - offloaded["score"] == cache
    # The head stays, and the rows of one microbatch come back instead of being kept there.
    assert resident["update"] - offloaded["update"] == weights - head + cache - rows
    # Of two, the larger one is there with the head of the other; afterwards both heads are.
    both = estimate_phases(config, shape, FrozenShapes(offloaded=[small, large]))
    assert both["rollout"] == offloaded["rollout"]
    assert both["score"] - offloaded["score"] == weights + head + rows
    assert both["update"] - offloaded["update"] == 2 * head + rows
    # A reference goes along.
    stm = load_config(folder / "run.toml", ["algorithm.name='stm'"])
    with_reference = estimate_phases(stm, shape, FrozenShapes(offloaded=[small]))
    assert with_reference["rollout"] == offloaded["rollout"]
    assert with_reference["score"] - offloaded["score"] == shape.head_bytes
    of_its_own = estimate_phases(stm, shape, FrozenShapes(offloaded=[small], reference=large))
    assert of_its_own["score"] - offloaded["score"] == weights + head + rows
    # What waits on the host instead: the weights, and rows of every token of a round.
    tokens = config.trajectories_per_round * config.rollout.max_trajectory_tokens
    assert estimate_host(config, shape, FrozenShapes(resident=[small])) == 0
    host = estimate_host(config, shape, FrozenShapes(offloaded=[small]))
    assert host == weights + tokens * 4 * small.hidden_size
    of_stm = estimate_host(stm, shape, FrozenShapes(offloaded=[small]))
    assert of_stm - host == shape.weight_bytes + tokens * 4 * shape.hidden_size


def test_an_offloaded_teacher_is_counted_on_a_device_and_refused_on_the_cpu(folder, monkeypatch):
    text = RUN.replace("[teacher]\n", "[teacher]\noffload = true\n")
    (folder / "offloaded.toml").write_text(text)
    config = load_config(folder / "offloaded.toml", [])
    refused = one(examine_run(config), "teacher", "offload")
    assert refused.level is Level.FATAL
    assert "computes on the CPU" in refused.text
    monkeypatch.setattr("sod.doctor.run.pick_device", lambda config: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 40, 1 << 40))
    findings = examine_run(config)
    assert one(findings, "teacher", "offload").level is Level.OK
    subjects = [each.subject for each in findings if each.area == "memory"]
    assert subjects == ["rollout", "score", "update", "host"]
    assert "on the host" in one(findings, "memory", "host").text
    in_place = examine_run(load_config(folder / "offloaded.toml", ["teacher.offload=false"]))
    assert "host" not in {each.subject for each in in_place}


def test_a_teacher_that_is_the_student_told_more(folder):
    text = RUN.replace('[teacher]\nmodel = "teacher"', '[teacher]\nname = "self"')
    (folder / "own.toml").write_text(f'{text}[algorithm]\nname = "opsd_gt"\n')
    findings = examine_run(load_config(folder / "own.toml", []))
    assert not findings.is_fatal
    assert one(findings, "teacher", "checkpoint").text == "the student itself, where the run starts"
    assert "GiB" in one(findings, "memory", "score").text
    untold = examine_run(load_config(folder / "own.toml", ["algorithm.name='opsd_hint'"]))
    text = [each.text for each in untold if each.area == "data" and each.level is Level.FATAL]
    assert "tells the teacher fields['hint'] of a task" in text[0]
    long = load_config(folder / "own.toml", ["algorithm.max_extra_tokens=4000"])
    assert "4,096 positions, but it reads up to 5,024" in one(examine_run(long), "student", "context").text
    short = load_config(folder / "own.toml", ["algorithm.max_extra_tokens=2"])
    assert any("tokens more than the student's" in each.text for each in examine_run(short))


def test_several_teachers_are_examined_one_by_one(folder):
    routes = '[teacher]\nname = "routed"\nroute_field = "answer"\n' + "".join(
        f'[teacher.routes.{number}]\nmodel = "{model}"\n'
        for number, model in (("2", "teacher"), ("3", "stranger"), ("4", "teacher"), ("5", "teacher"))
    )
    (folder / "routed.toml").write_text(RUN.replace('[teacher]\nmodel = "teacher"\n', routes))
    findings = examine_run(load_config(folder / "routed.toml", []))
    assert sum(each.subject == "checkpoint" and each.area == "teacher" for each in findings) == 4
    same = [each.level for each in findings if (each.area, each.subject) == ("teacher", "tokenizer")]
    assert same == [Level.OK, Level.FATAL, Level.OK, Level.OK]
    assert any(
        "of task 'train:5' is '6'; wanted one of the routes 2, 3, 4, 5" in each.text for each in findings
    )


def test_the_command_leaves_with_one_for_a_fatal_finding_and_writes_them_down(folder, tmp_path):
    runner, output = CliRunner(), tmp_path / "findings.json"
    sound = runner.invoke(app, ["doctor", str(folder / "run.toml"), "--output", str(output)])
    assert sound.exit_code == 0, sound.output
    rows = json.loads(output.read_text())
    assert {"area": "environment", "subject": "tools", "text": "add", "level": "ok"} in rows
    wrong = ["--set", "rollout.max_trajectory_tokens=8192"]
    assert runner.invoke(app, ["doctor", str(folder / "run.toml"), *wrong]).exit_code == 1
    assert runner.invoke(app, ["doctor", str(folder / "absent.toml")]).exit_code == 2
    alone = runner.invoke(app, ["doctor", *wrong])
    assert alone.exit_code == 2
    assert "give its TOML file too" in alone.output
    machine = runner.invoke(app, ["doctor"])
    assert machine.exit_code == 0
    assert "versions" in machine.output


@pytest.mark.parametrize(
    ("length", "level", "words"),
    [
        (1025, Level.OK, "serves 'tiny', 1,025 tokens in a row"),
        (1024, Level.FATAL, "the run sends up to 1,025, start it with a larger --max-model-len"),
    ],
)
def test_a_teachers_server_is_asked_for_the_length_it_holds(folder, length, level, words):
    answer = {"data": [{"id": "tiny", "max_model_len": length}]}
    with FakeServer(lambda path, body: (200, answer)) as server:
        text = (folder / "run.toml").read_text()
        listed = f'[teacher]\nname = "vllm_server"\nurl = "{server.url}"\n'
        (folder / "served.toml").write_text(
            text.replace("[teacher]\n", listed) + '[algorithm]\nname = "opd"\n'
        )
        findings = diagnose(load_config(folder / "served.toml", []))
    finding = one(findings, "teacher", "server")
    assert finding.level is level
    assert words in finding.text
    assert one(findings, "teacher", "tokenizer").level is Level.OK


def test_a_server_of_the_engine_that_is_away_is_fatal(folder, tmp_path):
    engine = f'[engine]\nname = "vllm_server"\nurl = "http://127.0.0.1:9"\nfolder = "{tmp_path}"\n'
    (folder / "away.toml").write_text((folder / "run.toml").read_text() + engine)
    finding = one(diagnose(load_config(folder / "away.toml", [])), "engine", "server")
    assert finding.level is Level.FATAL
    assert "no answer in 1 attempts" in finding.text
