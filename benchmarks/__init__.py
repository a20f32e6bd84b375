"""What is measured, and how. A package of its own name, so that no other one is taken for it."""
