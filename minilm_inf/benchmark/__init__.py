"""python -m minilm_inf.benchmark: sizes, timing, memory, three races, and a table of them."""
