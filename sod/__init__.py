"""The thin loop: rollouts, tools, teacher and training around `sod_kernels`."""
