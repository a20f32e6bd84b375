"""What a command is to the system: its signals, its output, the folder that it alone writes into."""
