"""What watches: the programs, their ring, limits and losses, up to the events for the sinks."""
