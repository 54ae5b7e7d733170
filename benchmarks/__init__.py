"""Measurements: what teraio costs and gives, on work that any machine can repeat."""
