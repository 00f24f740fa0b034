"""What tests and benchmarks share: the case table, and measures of error."""
