"""What benchmark.py measures: sizes, timing, memory, three races, and the table of them all."""
