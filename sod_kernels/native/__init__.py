"""Loads the C++ (and, where built, CUDA) library, or records why it cannot."""
