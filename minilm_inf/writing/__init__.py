"""From logits to text: sampling, sessions, batches, replies, and what a run will take."""
