"""The store port and its databases: the only place that knows SQL."""
