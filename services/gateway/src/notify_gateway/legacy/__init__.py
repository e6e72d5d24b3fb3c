"""The routes under `/api`, which clients of the first version use. `/v1` replaces them.

They know only users whose ids are integers, and lists leave out the notifications of all others.
"""
