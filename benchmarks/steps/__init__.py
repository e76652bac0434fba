"""
The steps that `benchmarks.step` compares and `benchmarks.traffic` counts: ours, HuBERT's, a plain one; and the turns
that all of what is compared takes.
"""
