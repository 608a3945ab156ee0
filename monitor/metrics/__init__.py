"""What is counted, what became of it, and the answer to a scrape."""
