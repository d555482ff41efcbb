"""The tutorial's application, and the terminal demo on top of it.

The tutorial: `database`, `cache`, `models`, `schemas`, `crud`, `app`. The demo: `story` does and measures, `race` plays
the race, `show` prints, `command` is the command line. Importing any of it connects to nothing.
"""
