"""Which processes have sealed memory, and whether that changes."""
