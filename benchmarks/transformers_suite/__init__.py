"""Transformers' own tests of its models over ours, for `benchmarks.transformers_tests`."""
