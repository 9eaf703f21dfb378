"""What the tests, the benchmarks and the command line's `verify` and `bench` share: cases with
their oracles, the numbers rule, and timing.
"""
