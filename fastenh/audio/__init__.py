"""Sound files and sample rates."""
