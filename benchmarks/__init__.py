"""Benchmarks: the goals of the project as figures that anybody can measure again.

`python -m benchmarks` lists them, `python -m benchmarks NAME` runs one, `all` runs every one; each
prints one JSON object a line.
"""
