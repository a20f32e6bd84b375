"""`apart-fast plan`: what a training on many GPUs would need, by counting and from assumed hardware."""
