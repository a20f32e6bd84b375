"""A trained network taken elsewhere: loaded, written as others open it, asked for pictures."""
