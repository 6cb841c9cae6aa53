"""fulltune: the core. Configuration, data, model, engine, training loop, checkpoints, export and generation.

It stands between the tasks (what to learn) and the Ray jobs (where to run), and imports neither Ray nor an API client.
"""

__version__ = "0.1.0"
