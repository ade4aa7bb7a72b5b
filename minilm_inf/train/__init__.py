"""python -m minilm_inf.train: what is read when, and how a small model learns from it."""
