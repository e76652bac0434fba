"""The steps that `benchmarks.step` compares and `benchmarks.traffic` counts: ours, HuBERT's, a plain one."""
