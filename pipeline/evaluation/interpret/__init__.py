"""Pictures that explain a model: what it sees first, where it looks, what it holds alike.

`study.py` draws the images and gathers the sections; `jobs/interpret.py` writes what it finds.
"""
