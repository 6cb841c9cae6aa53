"""One module per command of the `fulltune` command line: its arguments, and the call into the code that does it."""
