"""The models, by name, with their checkpoints."""
