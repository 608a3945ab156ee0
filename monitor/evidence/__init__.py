"""Makes events that a person understands of the kernel's records: what, who, and what it means."""
