"""What takes part: each module is a process of its own, that prints its figures as JSON.

They run in the environment of what they measure, so they import nothing but that, the standard
library, ``tests.benchmarks.work`` and ``tests.benchmarks.contenders.stopwatch``.
"""
