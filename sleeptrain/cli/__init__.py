"""The command line: `main` and a file a verb.

A verb is a module with `add(subparsers)`, which makes its parser with `help.add_verb`, and `run(args) -> int`, which returns the
exit status and imports what is heavy. It is announced by its name in `main.VERBS`.
"""
