"""What the programs share: their start and end, flags, progress, and files written whole."""
