"""`apart-fast analyze`: what happens during adversarial training, seen from the checkpoints of finished runs."""
