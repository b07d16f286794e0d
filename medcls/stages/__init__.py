"""What each command does, apart from its command line: the only readers of a loaded configuration."""
