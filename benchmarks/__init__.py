"""The benchmark runner of fusedrnn: `python -m benchmarks --help`.

Every speed figure of the project comes from here: the rows of `workloads.py`, measured by
`runner.py` for fusedrnn and its peers in one process, compared with what the machine can do
(`machine.py`, `roofline.py`) and with our targets (`targets.py`), written down by `report.py`, and
drawn by `ratios.py`.
"""
