"""Makes events that a person understands from kernel records: what, who, and what it means."""
