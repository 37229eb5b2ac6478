"""The first run: a tokenizer, a teacher and a student from nothing, then distillation, on two CPU cores."""
