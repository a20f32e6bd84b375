"""What `apart-fast train`, `evaluate` and `demo` do with their settings, and what they print."""
