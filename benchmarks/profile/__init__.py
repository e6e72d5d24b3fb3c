"""Show where the time goes: CPU by process and by area of the code, statements, and batch sizes."""
