"""Where checkpoints lie: folders that appear as a whole, local files, file objects."""
