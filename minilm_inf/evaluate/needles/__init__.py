"""What retrieval is made of: trials, how a method answers them, cells, report, picture."""
