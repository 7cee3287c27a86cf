"""Where files live, and how they appear there."""
