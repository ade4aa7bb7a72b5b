"""python -m minilm_inf.evaluate: perplexity, retrieval and a comparison of methods."""
