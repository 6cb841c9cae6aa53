"""What the user's own machines say before a run: checks as plain functions, each with its got, wanted and fix.

Nothing here knows Ray: `ray_jobs.preflight` starts the workers that measure and puts what they found into these checks.
"""
