"""Composition root: wires tasks, core and evaluation together and runs them on Ray. The only importer of Ray."""
