"""fastact against its peers and against the machine: run `python -m benchmarks` from a checkout."""
