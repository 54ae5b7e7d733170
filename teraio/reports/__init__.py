"""Reports: what records say, as text, pages, pictures and timelines.

In: records. Out: facts (plain dataclasses, also as JSON) and their rendering. Must not know: torch,
where records come from.
"""
