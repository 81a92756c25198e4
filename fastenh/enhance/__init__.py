"""From noisy recordings to enhanced ones."""
