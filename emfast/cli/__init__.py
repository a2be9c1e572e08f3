"""The command line: one file a command; they parse, call and print.

Commands import what is heavy inside their function, so that ``--help`` answers at once.
"""
