"""Simulated people who label over HTTP like real ones, a server to label on, and a count of what became of their answers."""
