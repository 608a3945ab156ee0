"""A command, watched: its violations and those of nobody else."""
