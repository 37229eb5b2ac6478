"""The isolated Python sandbox."""
