"""The steps that `benchmarks.step` compares: ours and HuBERT's, a plain one as reference, operations counted."""
