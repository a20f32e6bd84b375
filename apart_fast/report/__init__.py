"""A run, or several side by side, as one HTML file, and the pictures of a run."""
