"""Environments: what answers an assistant turn and decides the reward."""
