"""Pictures of recordings, models, runs and results."""
