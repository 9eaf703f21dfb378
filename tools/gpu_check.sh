#!/usr/bin/env bash
# All that a machine with an NVIDIA GPU can say about this repository, in one command and 9 minutes:
#
#     tools/gpu_check.sh OUT [build] [test] [sanitize] [bench] [--budget bench=300 ...]
#
# builds, runs the CUDA tests, looks for bad accesses and races, measures against cuDNN, and writes
# OUT/report.json and OUT/report.md. It needs python3 with torch and the test packages, and nvcc,
# but no network. PYTHON= chooses another python3.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
