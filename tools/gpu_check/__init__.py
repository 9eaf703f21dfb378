"""All that a machine with an NVIDIA GPU can say about this repository: tools/gpu_check.sh.

    __main__.py    the command: its options, and the order of the stages
    stages.py      what each stage consists of: its items, with the seconds expected of each
    scheduler.py   gives items to worker processes, and ends those that take too long
    channel.py     what scheduler and workers say to each other
    worker.py      the process that does items: one serves them, the other one runs tests
    serve.py       what each kind of item is, for worker.py
    device.py      the GPU, or what stands in for it where there is none
    problems.py    small problems that together run every kernel
    report.py      report.json, kept up to date; benchmarks/gpu_report.py makes report.md from it

Every item has a time limit. A kernel that hangs costs that limit and its worker process, a kernel
that spoils its CUDA context costs the worker, and the next item finds another worker waiting.
"""
