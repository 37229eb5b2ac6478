"""Teachers and what each can give."""

from sod.teacher.base import AnyTeacher, Capability, ListingTeacher, Teacher
from sod.teacher.kept import KeptTeacher
from sod.teacher.local import LocalTeacher, copies_to
from sod.teacher.own import CurrentPolicy
from sod.teacher.routed import RoutedTeacher
from sod.teacher.vllm_server import VLLMTeacher

__all__ = [
    "AnyTeacher",
    "Capability",
    "CurrentPolicy",
    "KeptTeacher",
    "ListingTeacher",
    "LocalTeacher",
    "RoutedTeacher",
    "Teacher",
    "VLLMTeacher",
    "copies_to",
]
