"""The training loop, and what it needs: state, watch, display, execution, schedule."""
