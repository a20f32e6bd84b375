"""One adversarial training step for any network in any loop; it knows nothing of runs."""
