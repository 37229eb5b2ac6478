"""The definition of truth: plain torch, any floating dtype, written to be read."""
