"""What diagnose measures: rows of attention, hidden states, and distances told apart."""
