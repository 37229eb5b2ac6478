"""Several teachers: whose tasks are whose, what all of them give, and what no route leads to."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from sod.config_file import config_from_dict, dump_config
from sod.config_teachers import TeacherSection, VLLMTeacherSection
from sod.errors import ConfigError
from sod.packing import pack
from sod.scoring import TopScores
from sod.teacher import Capability, ListingTeacher, LocalTeacher, RoutedTeacher
from sod.teacher.base import teacher_scores
from sod.teacher.routed import task_routes
from sod.tokenization import tokenize_trajectory
from sod.types import Task, Trajectory, Turn

RUN = """
[run]
output = "o"
[trainer]
rounds = 1
[algorithm]
name = "opd"
[teacher]
name = "routed"
route_field = "kind"
[teacher.routes.math]
model = "org/math"
dtype = "bfloat16"
[teacher.routes.code]
name = "vllm_server"
model = "org/code"
url = "http://host:1"
num_top = 8
"""


def config_of(text, base=Path("/base")):
    return config_from_dict(tomllib.loads(text), base=base)


def test_routes_are_sections_of_their_own_and_are_written_back():
    config = config_of(RUN)
    assert config.teacher.routes == {
        "math": TeacherSection(model="org/math", dtype="bfloat16"),
        "code": VLLMTeacherSection(model="org/code", url="http://host:1", num_top=8),
    }
    assert config_of(dump_config(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('route_field = "kind"', 'model = "org/t"', "[teacher] model belongs to teacher 'local'"),
        ('dtype = "bfloat16"', "num_tpo = 3", "[teacher.routes.math]: unknown key [teacher] num_tpo"),
        ('name = "vllm_server"', 'name = "self"', "[teacher.routes.code]: [teacher] name = 'self': unknown"),
        ('url = "http://host:1"', "", "[teacher.routes.code]: [teacher] url is missing"),
        ('name = "opd"', 'name = "stm"', '[teacher] name = "vllm_server" lists log-probs of a few ids'),
        (
            "[teacher.routes.math]",
            "[teacher.routes]\nx = 1\n[teacher.routes.math]",
            "x = 1: [teacher.routes.x]",
        ),
    ],
)
def test_what_is_wrong_in_a_route_is_named(old, new, words):
    with pytest.raises(ConfigError) as caught:
        config_of(RUN.replace(old, new, 1))
    assert words in str(caught.value)


def test_a_routed_teacher_has_routes():
    bare = RUN[: RUN.index("[teacher.routes.math]")]
    with pytest.raises(ConfigError, match=r"\[teacher\] routes is missing"):
        config_of(bare)
    with pytest.raises(ConfigError, match=r"\[teacher\] routes = \{\}: wanted a table"):
        config_of(bare + "[teacher.routes]\n")
    with pytest.raises(ConfigError, match="got no teachers; wanted at least one route"):
        RoutedTeacher({}, {})


def test_tasks_name_their_teacher():
    tasks = [
        Task(task_id=name, messages=(), fields={"kind": kind}) for name, kind in (("a", "x"), ("b", "y"))
    ]
    assert task_routes(tasks, "kind", ("x", "y")) == {"a": "x", "b": "y"}
    with pytest.raises(ConfigError, match=r"that of task 'b' is 'y'; wanted one of the routes x\. Add"):
        task_routes(tasks, "kind", ("x",))
    with pytest.raises(ConfigError, match=r"route_field = 'king': that of task 'a' is None"):
        task_routes(tasks, "king", ("x", "y"))


class Listing:
    """Lists the sampled id with the score that it was given."""

    capabilities = frozenset({Capability.TOP_K, Capability.SAMPLED})

    def __init__(self, score):
        self.score, self.is_closed = score, False

    def top_scores(self, batch):
        return TopScores(log_probs=torch.full((batch.num_rows, 1), self.score), ids=batch.labels[:, None])

    def close(self):
        self.is_closed = True


def test_microbatches_have_one_teacher_each_and_it_scores_them(tiny_model):
    trajectories = [
        Trajectory(task_id=name, turns=(Turn(context_ids=(3,) * length, sampled_ids=(4, 5)),), group_id=index)
        for index, (name, length) in enumerate([("a", 2), ("b", 5), ("c", 3), ("d", 2)])
    ]
    local, listing = LocalTeacher(tiny_model), Listing(-1.5)
    routed = RoutedTeacher({"big": local, "far": listing}, {"a": "big", "b": "far", "c": "big", "d": "far"})
    sequences = [tokenize_trajectory(one) for one in trajectories]
    batches = pack(sequences, range(4), max_tokens=10_000, pad_id=0, routes=routed.routes(trajectories))
    assert [(batch.route, batch.trajectories) for batch in batches] == [("big", (2, 0)), ("far", (1, 3))]
    assert torch.equal(teacher_scores(routed, batches[0]).hidden, local.hidden(batches[0]).hidden)
    assert (teacher_scores(routed, batches[1]).log_probs == -1.5).all()
    assert routed.capabilities == listing.capabilities
    assert isinstance(routed, ListingTeacher)
    routed.close()
    assert listing.is_closed
    with pytest.raises(ConfigError, match="task 'e' has route None; wanted one of big, far"):
        routed.routes([Trajectory(task_id="e", turns=trajectories[0].turns)])
