"""The pictures of the analyses, drawn from their numbers."""
