"""Teachers and what each can give."""

from sod.teacher.base import Capability, Teacher
from sod.teacher.local import LocalTeacher

__all__ = ["Capability", "LocalTeacher", "Teacher"]
