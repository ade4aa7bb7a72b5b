"""What the programs share: their start and end, flags, progress, files written whole; and what
the method asks of its arguments (checks) and of a file (blocks)."""
