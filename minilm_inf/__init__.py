"""minilm_inf: LM-Infinite (NAACL 2024, arXiv 2308.16137) from scratch, to read, test against and run.

In reading order: config, positions, lambda_mask, distance_ceiling, attention (the definition),
chunked (the same in O(n)), cache, transformer, models, checkpoint, tokenizer, sampling, generate;
then evaluate and card (what is measured), corpus, practice and train (how weights/ came to be).
"""
