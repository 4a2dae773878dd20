"""The database, and the only place that speaks SQL: one module of plain functions per noun.

Every function takes the session first; nobody commits but `session.Database.transaction`.
"""
