"""In a source checkout: the peers (``python -m benchmarks``), and operations one by one (test_*.py)."""
