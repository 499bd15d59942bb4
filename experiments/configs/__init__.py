"""Configs, one file an experiment: <topic>/<name>.py with a get_config()."""
