"""python -m minilm_inf.inspect: what a folder holds, the memory it takes, and a probe of it."""
