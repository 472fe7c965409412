"""Benchmarks: holdfast next to the other proxies of this machine, and against itself.

`python -m bench` prints the comparison; `bench.eviction` measures how fast an instance that leaves is
spared; `bench.profile` shows where the forwarding path spends its time; `bench.compare` tells whether a
change made it faster. None of this is part of the product, and the product is only run, never imported.
"""
