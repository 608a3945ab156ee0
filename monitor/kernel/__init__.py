"""The BPF programs in the kernel, and how to read what they counted."""
