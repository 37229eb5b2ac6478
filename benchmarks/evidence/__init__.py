"""Every method from the same cold starts, over seeds, where the teacher helps and where it harms."""
