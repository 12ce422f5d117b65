"""The command line: `main`, and one module per command.

The module of a command has `add(subparsers)`, which creates its parser with `help.add_command`, and `run(args) -> int`, which
returns the exit status and imports heavy packages. `main.COMMANDS` lists the modules.
"""
