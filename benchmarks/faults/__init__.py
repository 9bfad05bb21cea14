"""Damaged inputs and killed runs: what `fuzz.py` and `bench_kills.py` are made of."""
