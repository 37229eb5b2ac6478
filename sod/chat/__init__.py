"""Text to token ids and back, at the border of the loop only."""

from sod.chat.renderer import ChatRenderer

__all__ = ["ChatRenderer"]
