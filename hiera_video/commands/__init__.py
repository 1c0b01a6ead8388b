"""One file a command: its arguments, its words and its exit status."""
