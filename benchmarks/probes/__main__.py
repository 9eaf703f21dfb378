"""`python -m benchmarks.probes`: builds the library of microbenchmarks ahead."""

from benchmarks.probes import build

print(build())
