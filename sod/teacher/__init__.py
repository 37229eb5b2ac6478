"""Teachers and what each can give."""

from sod.teacher.base import AnyTeacher, Capability, ListingTeacher, Teacher
from sod.teacher.local import LocalTeacher
from sod.teacher.vllm_server import VLLMTeacher

__all__ = ["AnyTeacher", "Capability", "ListingTeacher", "LocalTeacher", "Teacher", "VLLMTeacher"]
