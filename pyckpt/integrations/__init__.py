"""Frameworks that train: a module for each. Only users import them, and each imports its own."""
