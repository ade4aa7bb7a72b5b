"""python -m minilm_inf.diagnose: rows of attention, hidden states, and distances told apart."""
