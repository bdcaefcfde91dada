"""Attention that costs less: exact methods, caches and approximations. Chapters 15 to 18."""
