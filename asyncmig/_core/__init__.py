"""Decisions without I/O: `now` goes in, a decision comes out. Nothing here awaits or reads a clock."""
