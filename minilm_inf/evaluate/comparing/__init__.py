"""Methods of reading past the trained length, side by side: what each sees, keeps and loses."""
