"""Whole models, one family a file, each with a frozen config."""
