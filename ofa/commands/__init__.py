"""The commands of the command line, once their options are read."""
