"""Run folders: train into one, resume, load its network, list all of them, track them live."""
