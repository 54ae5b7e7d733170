"""The profiler: from what the native core saw to a Trace, and from speed tests to a Hardware."""
