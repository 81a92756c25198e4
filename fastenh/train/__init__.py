"""Training: recipe, losses, schedule, loop."""
