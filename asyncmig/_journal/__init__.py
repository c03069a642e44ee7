"""The journal's parts: who holds what, the file, the thread that writes it."""
