"""The engine's Python side: what the native core is told, and where PyTorch is led to it.

The state machine itself lives in csrc/, because ops must pass it without Python's global lock.
"""
