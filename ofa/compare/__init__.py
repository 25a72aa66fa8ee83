"""The comparison of methods: its cells, methods, statistics, tables and plots."""
