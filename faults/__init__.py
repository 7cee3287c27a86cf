"""Campaigns of faults: what goes wrong is tried systematically, and what must hold is looked at."""
