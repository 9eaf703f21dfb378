"""Machine code of NVIDIA's GPUs without one: what a kernel executes, and in which cycle.

code.py          instructions with their control words, from what nvdisasm prints
operands.py      registers, constants and addresses, as a warp reads and writes them
operations.py    what each instruction does
machine.py       the warps of one block, executed
schedule.py      when each of their instructions is issued, and what it waited for
assumptions.py   every number that the code itself does not say
"""
