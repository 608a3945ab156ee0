"""What is counted, what became of it, and how a scrape is answered."""
