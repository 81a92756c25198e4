"""What is timed and counted; tools, not part of the package."""
