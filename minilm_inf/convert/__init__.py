"""python -m minilm_inf.convert: pickles and GGUF files become folders of safetensors."""
