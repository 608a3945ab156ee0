"""From the kernel's records to events that a person understands: what, who, and what it means."""
