"""A run on disk: its settings, its folder, its checkpoints."""
