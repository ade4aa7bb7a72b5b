"""python -m minilm_inf.benchmark: three races, their memory, and a table of them."""
