"""Fused, step-aware distillation losses."""
