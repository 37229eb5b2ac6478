"""Teachers and what each can give."""
