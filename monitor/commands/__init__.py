"""What the commands print that need no daemon of their own."""
