"""One command on a GPU: build, check, measure, train. `python -m benchmarks.gpu`, or `make gpu`."""
