"""Text to ids and back: each kind of tokenizer as its files describe it, and forms of chat."""
