"""The command-line tool ``teraio``: one module per command.

In: arguments. Out: calls of the library, and its reports on the console. A command parses and
prints; reports do the rest. Must not know: how anything is found out or drawn.
"""
