"""The rooms of the task `sql_create_context`: how a query is found, read, compared and run.

completion -> extraction -> query (one statement that only reads; tables and columns resolved) -> normalise (ast_match)
                              |-> use -> suite (databases) -> sandbox (SQLite) -> compare (execution_match)
                              `-> blog (the check of the Llama-2 study, on one table)
"""
