"""The parts of `benchmarks/gpu_suite.py`: what they are, what they take, how they run, what came out."""
