#!/usr/bin/env bash
# All that a machine with an NVIDIA GPU can say about this repository, in one command and 9 minutes:
#
#     tools/gpu_check.sh OUT [STAGE ...] [--dry-run] [--total 540] [--library FOLDER] [--stand-in ..]
#
# checks every way of computing, measures it against cuDNN, runs the CUDA tests, and looks for bad
# accesses and races. OUT gets report.json, report.md and check.log, which are written anew every 20
# seconds. It needs python3 with torch, pytest and hypothesis, but no network; and nvcc only if the
# libraries were not built ahead. PYTHON= chooses another python3.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m tools.gpu_check "$@"
