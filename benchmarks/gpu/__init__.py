"""
A GPU where there is none, which `benchmarks.simulated_gpu` runs commands on: the device, how it is compiled, the
process that has it, what `torch.cuda` is told of it, and where it is waited for.
"""
