"""Settings: what is refused, with which words, and what comes through unchanged."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from sod.config import (
    AdamWSection,
    DataSection,
    EvaluationSection,
    MuonSection,
    RolloutSection,
    RunConfig,
    RunSection,
    StudentSection,
    TrainerSection,
)
from sod.config_algorithms import OPDSection, SFTSection, SODSection
from sod.config_file import config_from_dict, config_to_dict, dump_config, load_config
from sod.config_teachers import TeacherSection
from sod.errors import ConfigError

MINIMAL = '[run]\noutput = "out"\n[trainer]\nrounds = 2\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert isinstance(config.algorithm, SODSection)
    assert (config.algorithm.delta, config.algorithm.epsilon) == (0.2, 1e-6)
    assert config.algorithm.step_divergence == "abs_log_ratio"
    assert isinstance(config.optimizer, AdamWSection)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-6, 0.01)


def test_paths_start_from_the_file_and_not_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "models" / "s").mkdir(parents=True)
    text = (
        MINIMAL + '[student]\nmodel = "models/s"\n[teacher]\nmodel = "org/name"\n[data]\ntrain = "t.jsonl"\n'
    )
    path = write(tmp_path, text)
    monkeypatch.chdir("/")
    config = load_config(path)
    assert config.run.output == tmp_path / "out"
    assert config.student is not None
    assert config.student.model == str(tmp_path / "models" / "s")
    assert config.teacher is not None
    assert config.teacher.model == "org/name"
    assert config.data is not None
    assert config.data.train == tmp_path / "t.jsonl"


def test_a_path_that_is_spelled_as_one_stays_one_even_if_it_does_not_exist(tmp_path):
    config = load_config(write(tmp_path, MINIMAL + '[student]\nmodel = "./nowhere"\n'))
    assert config.student is not None
    assert config.student.model == str(tmp_path / "nowhere")


def test_resolved_settings_read_back_to_the_same(tmp_path):
    text = (
        MINIMAL
        + """
[algorithm]
name = "opd"
divergence = "jsd"
beta = 0.25
[optimizer]
name = "muon"
schedule = "cosine"
final_fraction = 0.5
[student]
model = "org/name"
"""
    )
    config = load_config(write(tmp_path, text))
    again = config_from_dict(tomllib.loads(dump_config(config)), base=Path("/elsewhere"))
    assert again == config


def test_overrides_win_over_the_file(tmp_path):
    path = write(tmp_path, MINIMAL)
    config = load_config(
        path, ["trainer.rounds=7", 'algorithm.name="opd"', "rollout.temperature=1", "run.seed = 3"]
    )
    assert config.trainer.rounds == 7
    assert isinstance(config.algorithm, OPDSection)
    assert config.rollout.temperature == 1.0
    assert config.run.seed == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trainer]\nrounds = 2\n", ["section [run] is missing"]),
        ('[run]\noutput = "o"\n[trainer]\n', ["[trainer] rounds is missing"]),
        (MINIMAL + "[trainr]\n", ["unknown section [trainr]", "did you mean 'trainer'?"]),
        (MINIMAL + "epocs = 2\n", ["unknown key [trainer] epocs", "did you mean 'epochs'?"]),
        (MINIMAL + "zzz = 2\n", ["unknown key [trainer] zzz", "known: rounds"]),
        (MINIMAL + "epochs = 0\n", ["[trainer] epochs = 0", "above 0"]),
        (MINIMAL + 'epochs = "2"\n', ["[trainer] epochs = '2'", "wanted an integer, got str"]),
        (MINIMAL + "epochs = true\n", ["[trainer] epochs = True", "wanted an integer, got bool"]),
        (MINIMAL + "[rollout]\ntop_p = 1.5\n", ["[rollout] top_p = 1.5", "at most 1"]),
        (MINIMAL + "[rollout]\ntemperature = 0\n", ["[rollout] temperature = 0", "above 0"]),
        (MINIMAL + "[checkpoint]\nevery = -1\n", ["[checkpoint] every = -1", "at least 0"]),
        (MINIMAL + "[trainer2]\nx=1\n", ["unknown section [trainer2]"]),
        (MINIMAL + '[algorithm]\nname = "sdo"\n', ["[algorithm] name = 'sdo'", "did you mean 'sod'?"]),
        (
            MINIMAL + "[algorithm]\ndelta = 0.1\n",
            ["[algorithm] name is missing; known: sft, grpo, opd, sod, atod, stm"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "opd"\ndelta = 0.5\n',
            ["[algorithm] delta belongs to algorithm 'sod' and 'stm'", "name = 'opd'", "remove it"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "sft"\ntemperature = 0.5\n',
            [
                "[algorithm] temperature belongs to algorithm 'opd' and 'sod' and 'atod'",
                "name = 'sft'",
            ],
        ),
        (
            MINIMAL + '[optimizer]\nname = "adamw"\nmomentum = 0.5\n',
            ["[optimizer] momentum belongs to optimizer 'muon'", "name = 'adamw'"],
        ),
        (MINIMAL + '[optimizer]\nname = "sgd"\n', ["[optimizer] name = 'sgd': unknown", "adamw"]),
        (
            MINIMAL + '[algorithm]\nname = "opd"\nbeta = 0.3\n',
            ['[algorithm] beta = 0.3: belongs to divergence = "jsd"'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "opd"\ndivergence = "jsd"\nbeta = 1.0\n',
            ["[algorithm] beta = 1.0: wanted a value below 1"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "opd"\ndivergence = "jsd"\nmin_log_prob = -9.0\n',
            ["[algorithm] min_log_prob = -9.0: belongs to divergence"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "sod"\ndivergence = "jsd"\n',
            ['[algorithm] divergence = "jsd": belongs to form = "vocab"'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "sod"\nstep_divergence = "kl"\n',
            ['[algorithm] step_divergence = "kl": belongs to form = "vocab"'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "sod"\nweight = "mask_after_error"\ndelta = 0.5\n',
            ['[algorithm] delta = 0.5: belongs to weight = "divergence"', '"mask_after_error"'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "opd"\nclip_high = 0.3\n',
            ["[algorithm] clip_high = 0.3: belongs to the policy-gradient term", 'form = "vocab"'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "grpo"\ndual_clip = 0.5\n',
            ["[algorithm] dual_clip = 0.5: wanted a value above 1, or 0"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "atod"\nanneal_rounds = 0\nreward_end = 3.0\n',
            ["[algorithm] reward_end = 3.0: is never reached with anneal_rounds = 0"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "atod"\npenalty_on = "turn"\n',
            ['[algorithm] penalty_on = "turn": [environment] is no section, where no turn pays'],
        ),
        (
            MINIMAL
            + '[algorithm]\nname = "atod"\npenalty_on = "turn"\nreward_start = 0\nanneal_rounds = 0\n',
            ['[algorithm] penalty_on = "turn": belongs to a reward term'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "atod"\npenalty_on = "turn"\n[environment]\nname = "ledger"\n',
            ['[environment] is "ledger", where no turn pays an invalid_penalty'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "atod"\n[environment]\nname = "ledger"\ninvalid_penalty = 0.1\n',
            ["[environment] invalid_penalty belongs to environment"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "stm"\nquantile = 0.9\n',
            [
                '[algorithm] quantile = 0.9: belongs to anchor = "running_quantile" or "batch_quantile"',
                '"entropy"',
            ],
        ),
        (
            MINIMAL + '[reference]\nmodel = "start"\n',
            ['[reference] belongs to algorithm "stm", but [algorithm] name = "sod"; remove it'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "gated_opd"\nlow = 0.5\n',
            ["[algorithm] low = 0.5: wanted at most high = 0.1"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "gated_opd"\nreward_coefficient = 0\n',
            ["[algorithm] reward_coefficient = 0.0: wanted a value above 0"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "stm"\nform = "sampled"\n',
            ["[algorithm] form = 'sampled': wanted one of 'vocab'"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "grpo"\n[rollout]\nnum_samples = 1\n',
            ["[rollout] num_samples = 1: the reward term of algorithm", "wanted at least 2"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "sod"\ntemperature = 0.9\n[rollout]\ntemperature = 0.7\n',
            ["[algorithm] temperature = 0.9: the policy-gradient term", "[rollout] temperature = 0.7"],
        ),
        (
            MINIMAL.replace("[trainer]\n", '[trainer]\nprecision = "bfloat16"\n')
            + '[engine]\nname = "continuous"\n',
            [
                '[trainer] precision = "bfloat16"',
                "samples in the type of the weights",
                'or engine "lockstep"',
            ],
        ),
        (
            MINIMAL + '[algorithm]\nname = "atod"\n[rollout]\ntop_p = 0.9\n',
            ["[rollout] top_p = 0.9: a truncated policy is not the one"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "grpo"\n[teacher]\nmodel = "org/t"\n',
            ["[teacher] belongs to algorithms", 'name = "grpo"'],
        ),
        (
            MINIMAL + '[algorithm]\nname = "opd"\ndivergence = "kl"\n',
            ["[algorithm] divergence = 'kl'", "'reverse_kl', 'forward_kl', 'jsd'"],
        ),
        (
            MINIMAL + '[optimizer]\nname = "adamw"\nfinal_fraction = 0.3\n',
            ["[optimizer] final_fraction = 0.3: belongs to schedule"],
        ),
        (
            MINIMAL + '[algorithm]\nname = "sft"\n[teacher]\nmodel = "org/t"\n',
            ['[teacher] belongs to algorithms "opd" and "sod" and "atod"', 'name = "sft"'],
        ),
        (
            MINIMAL + "[rollout]\nmax_turn_tokens = 9\nmax_trajectory_tokens = 8\n",
            ["[rollout] max_turn_tokens = 9: wanted at most max_trajectory_tokens = 8"],
        ),
        (
            MINIMAL + "max_microbatch_tokens = 100\n",
            ["[trainer] max_microbatch_tokens = 100: wanted at least", "max_trajectory_tokens = 8192"],
        ),
        (
            MINIMAL + '[data]\ntrain = "t"\n[evaluation]\nevery = 1\n',
            ["[evaluation] every = 1: there is nothing to evaluate on"],
        ),
        ("run = 3\n[trainer]\nrounds = 1\n", ["run = 3: [run] is a section, not a setting"]),
        ("[run\n", ["is not valid TOML"]),
        (MINIMAL + "[environment]\n", ["[environment] name is missing; known: tools"]),
        (
            MINIMAL + '[environment]\nname = "tools"\ntools = "python"\n',
            ["[environment] tools = 'python': wanted a list, got str"],
        ),
        (
            MINIMAL + '[environment]\nname = "tools"\ntools = [1]\n',
            ["[environment] tools (an entry of it) = 1: wanted a string, got int"],
        ),
        (
            MINIMAL + '[student]\nmodel = "a/b"\nrevision = 3\n',
            ["[student] revision = 3: wanted a string, got int"],
        ),
        (
            MINIMAL + '[student]\nmodel = "a/b"\nchat_template = "qwen"\n',
            ["[student] chat_template = 'qwen': wanted one of 'own', 'plain', 'hermes', 'qwen2.5', 'qwen3'"],
        ),
        (
            MINIMAL + '[student]\nmodel = "a/b"\ncall_format = "xml"\n',
            ["[student] call_format = 'xml': wanted one of 'auto', 'hermes', 'json', 'python', 'action'"],
        ),
        (
            MINIMAL + '[rollout]\nhistory = "window"\n',
            ["[rollout] history_window is missing", "tells that many turns"],
        ),
        (
            MINIMAL + '[rollout]\nhistory = "per_turn"\nhistory_window = 2\n',
            ['[rollout] history_window = 2: belongs to history = "window", but history = "per_turn"'],
        ),
        (MINIMAL + "[rollout]\nhistory_window = 0\n", ["[rollout] history_window = 0", "above 0"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds=3", "wanted section.key=value"),
        ("trainer.rounds", "wanted section.key=value"),
        ("trainer.a.b=3", "wanted section.key=value"),
        ("algorithm.name=sod", "a string needs quotes"),
        ("trainer.rouds=3", "unknown key [trainer] rouds; did you mean 'rounds'?"),
        ("top.x=3", "unknown section [top]"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), [override])
    assert words in str(caught.value)


def test_an_override_of_what_is_not_a_section(tmp_path):
    with pytest.raises(ConfigError, match="'run' is not a section"):
        load_config(write(tmp_path, "run = 3\n[trainer]\nrounds = 1\n"), ["run.seed=1"])


def test_a_missing_or_unreadable_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*absent.toml"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_sections_made_in_python_are_checked_too():
    with pytest.raises(ConfigError, match=r"\[rollout\] num_samples = 0: wanted a value above 0"):
        RolloutSection(num_samples=0)
    with pytest.raises(ConfigError, match=r"\[run\] output = 'x': wanted a path"):
        RunSection(output="x")
    with pytest.raises(ConfigError, match=r"\[data\] train_limit = 0"):
        DataSection(train=Path("x"), train_limit=0)


def test_a_config_is_frozen():
    section = EvaluationSection()
    with pytest.raises(AttributeError):
        section.every = 3


@pytest.mark.parametrize(
    ("algorithm", "environment", "wanted"),
    [
        ("atod", 'name = "textworld"\ncache = "games"', 0.1),
        ("grpo", 'name = "textworld"\ncache = "games"', 0.0),
        ("atod", 'name = "search_qa"\ncorpus = "c.jsonl"\ncache = "index"\ninvalid_penalty = 0.3', 0.3),
        ("atod", 'name = "textworld"\ncache = "games"\ninvalid_penalty = 0.0', 0.0),
    ],
)
def test_an_invalid_action_costs_what_the_algorithm_brings_unless_it_is_set(
    tmp_path, algorithm, environment, wanted
):
    text = f'{MINIMAL}[algorithm]\nname = "{algorithm}"\n[environment]\n{environment}\n'
    config = load_config(write(tmp_path, text))
    assert config.environment.invalid_penalty == wanted
    # What a run did is told, and it stays so whatever reads its folder.
    assert config_to_dict(config)["environment"]["invalid_penalty"] == wanted
    assert replace(config, algorithm=OPDSection()).environment.invalid_penalty == wanted


def test_updates_are_counted_over_samples_and_epochs():
    def config(algorithm):
        return RunConfig(
            run=RunSection(output=Path("x")),
            trainer=TrainerSection(rounds=3, tasks_per_round=5, epochs=2, minibatch_trajectories=4),
            rollout=RolloutSection(num_samples=2),
            algorithm=algorithm,
        )

    assert config(OPDSection()).num_updates == 3 * 2 * 3
    assert config(SFTSection()).num_updates == 3 * 2 * 2


def test_muon_and_models_have_their_own_keys():
    assert MuonSection(matrix_learning_rate=0.5).matrix_learning_rate == 0.5
    assert StudentSection(model="a/b").section == "student"
    assert TeacherSection(model="a/b").section == "teacher"
