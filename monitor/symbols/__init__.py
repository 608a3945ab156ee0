"""From frames to the names of functions."""
