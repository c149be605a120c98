"""Benchmarks: native programs, peers in Python (``python -m benchmarks``), and pytest-benchmark suites."""
