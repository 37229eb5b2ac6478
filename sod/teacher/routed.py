"""Several teachers, each for its own tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from sod.errors import ConfigError
from sod.packing import Batch
from sod.scoring import TeacherScores
from sod.teacher.base import AnyTeacher, Capability, ListingTeacher, teacher_scores
from sod.types import Task, Trajectory


class RoutedTeacher:
    """Lets the teacher of a microbatch's route score it.

    Attributes:
        teachers: By route.
    """

    def __init__(self, teachers: Mapping[str, AnyTeacher], route_of: Mapping[str, str]) -> None:
        """Take the teachers.

        Args:
            teachers: By route, at least one.
            route_of: The route of each task, by its id; see `task_routes`.

        Raises:
            ConfigError: There is no teacher.
        """
        if not teachers:
            raise ConfigError("RoutedTeacher: got no teachers; wanted at least one route")
        self.teachers = dict(teachers)
        self._route_of = dict(route_of)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What every one of them gives."""
        return reduce(frozenset.intersection, (one.capabilities for one in self.teachers.values()))

    def routes(self, trajectories: Sequence[Trajectory]) -> list[str]:
        """Give the route of each trajectory, for `sod.packing.pack`.

        Args:
            trajectories: Those of a round.

        Returns:
            A name per trajectory.

        Raises:
            ConfigError: Nobody said which teacher a task has.
        """
        for one in trajectories:
            route = self._route_of.get(one.task_id)
            if route not in self.teachers:
                raise ConfigError(
                    f"RoutedTeacher: task {one.task_id!r} has route {route!r}; wanted one of "
                    f"{', '.join(self.teachers)}"
                )
        return [self._route_of[one.task_id] for one in trajectories]

    def top_scores(self, batch: Batch) -> TeacherScores:
        """Score the rows of a batch of one route; see `sod.teacher.base.ListingTeacher.top_scores`."""
        return teacher_scores(self.teachers[batch.route], batch)

    def close(self) -> None:
        """Release what the teachers hold."""
        for teacher in self.teachers.values():
            if isinstance(teacher, ListingTeacher):
                teacher.close()


def task_routes(tasks: Sequence[Task], field: str, routes: Sequence[str]) -> dict[str, str]:
    """Read off the tasks which teacher each has.

    Args:
        tasks: The training tasks.
        field: Their field that names the route.
        routes: Names of the teachers.

    Returns:
        The route of each task, by its id.

    Raises:
        ConfigError: Naming the first task whose route there is no teacher for.
    """
    for task in tasks:
        route = task.fields.get(field)
        if route not in routes:
            raise ConfigError(
                f"[teacher] route_field = {field!r}: that of task {task.task_id!r} is {route!r}; wanted one "
                f"of the routes {', '.join(routes)}. Add [teacher.routes.NAME], or leave the task out"
            )
    return {task.task_id: task.fields[field] for task in tasks}
